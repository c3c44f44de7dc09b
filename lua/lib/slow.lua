-- Reservations in a script, which nothing outlives: all of them take the long way.
-- @gives quick

local quick = {}

function quick.reserve() end
function quick.commit() end
function quick.release() end
function quick.prepare() end
