-- Slots: how many may run at once. Taken only by a hold, and back when it ends.
--
-- State: how many are taken.
-- @gives slots

local slots = {}

local function slots_left(L, s)
  s.left = max(0, L.limit - s.used)
  return s.left
end

function slots.load(L, rec, _, s)
  s.used = sunpack(SLOTS_FORMAT, rec, L.offset)
  return slots_left(L, s)
end

function slots.fresh(L, _, _, s)
  s.used = 0
  return slots_left(L, s)
end

function slots.charge(L, c, _, s)
  s.used = s.used + c
  slots_left(L, s)
end

function slots.mark()
  return 0
end

-- Nobody runs on when the hold has ended, whatever was kept of it.
function slots.give_back(L, _, c, _, _, s)
  s.used = s.used - min(c, s.used)
  slots_left(L, s)
end

function slots.figures(L, _, s)
  return L.limit, s.used, s.left, 0, NONE
end

-- When the next hold ends at the latest: a hint, as nobody knows which of them that will be.
function slots.retry_at(L, c, _, s)
  return c <= L.limit and s.due or NONE
end

function slots.convert(_, L, _, s)
  slots_left(L, s)
end

function slots.pack(_, s)
  return spack(SLOTS_FORMAT, s.used)
end
