-- What a call has to tell beside its answer, collected until its records are written; and the books of pools that
-- are billed: how much of the running period has been harvested, that is, put into the outbox.
--
-- Books of a record, b in its variable part: {i = birth id, p = {pool = {harvested, sequence, base}}}. `base`: use
-- of the running period that came before the pool was billed this way. An entry of the outbox is a change of what
-- is billed of one period; it may be negative only as the last word on it. The birth id, the pool and the sequence
-- make it known again; the first entry of a record has no birth id, and its own id in the stream becomes that.
--
-- level.news, nil as long as there is none: events (rows), entries, books (those to store from now on), list (the
-- record has to go into the index; if an instant: for that at the latest), holds (whether these have to be at hand).
-- @gives bill

local BY_USE, BY_OVERAGE = 1, 2

local bill = {}

function bill.news(level)
  local news = level.news
  if not news then
    news = { events = {}, entries = {} }
    level.news = news
  end
  return news
end

-- What is billed of a pool's use: all but what holds have of it.
function bill.units(L, use, over, held)
  if L.bill == BY_USE then
    return max(0, use - held.units)
  end
  return L.bill == BY_OVERAGE and max(0, over - held.over) or 0
end

-- The books of one pool, as this call leaves them.
function bill.book(level, name)
  local news = bill.news(level)
  local books = news.books
  if not books then
    local stored = level.var and level.var.b
    books = { i = stored and stored.i or "", p = {} }
    for other, row in pairs(stored and stored.p or {}) do
      books.p[other] = { row[1], row[2], row[3] }
    end
    news.books = books
  end
  local row = books.p[name]
  if not row then
    row = { 0, 0, 0 }
    books.p[name] = row
  end
  return row
end

function bill.known(level, name)
  local books = level.news and level.news.books or level.var and level.var.b
  return books and books.p[name]
end

-- Adds `delta` to the outbox, as an entry of the period from `start` to `fin`, when it was to end.
function bill.enter(level, name, how, delta, start, fin)
  local row = bill.book(level, name)
  row[2] = row[2] + 1
  local entries = bill.news(level).entries
  entries[#entries + 1] = { name, delta, row[2], start, fin < NEVER and fin or NONE, how }
end

-- The rest of what is billed of a period, whichever sign it has; nothing of it is harvested any more.
function bill.last_word(level, L, units, start, fin)
  local row = bill.known(level, L.name)
  local delta = max(0, units - (row and row[3] or 0)) - (row and row[1] or 0)
  if delta ~= 0 then
    bill.enter(level, L.name, L.bill, delta, start, fin)
  end
  if row and (row[1] > 0 or row[3] > 0) then
    row = bill.book(level, L.name)
    row[1], row[3] = 0, 0
  end
end

-- A period is over: `ended` as pool.lua leaves it, `held` what open holds have of it.
function bill.close(level, L, ended, held)
  if ended.use > 0 then
    local limit, left = L.limit, ended.left < huge and ended.left or NONE
    local events = bill.news(level).events
    events[#events + 1] = { "closed", L.name, limit, ended.use, left, ended.start, ended.fin, plan = level.parsed.plan }
  end
  if L.bill > 0 then
    bill.last_word(level, L, bill.units(L, ended.use, ended.over, held), ended.start, ended.bound)
  end
end

-- A running period goes on under a definition that is billed in another way: what was used so far is billed as it
-- was up to now, and only what comes is billed as it is from now on.
function bill.switch(level, old, L, s, held)
  local use = s.used + s.drawn + s.over
  if old.bill > 0 then
    bill.last_word(level, old, bill.units(old, use, s.over, held), s.start, s.fin)
  end
  local base = bill.units(L, use, s.over, held)
  if base > 0 then
    bill.book(level, L.name)[3] = base
  end
end

-- What is new of a running period goes into the outbox. Returns whether the record has something to settle later.
function bill.harvest(level, L, s, held)
  local row = bill.known(level, L.name)
  local units = bill.units(L, s.used + s.drawn + s.over, s.over, held)
  local delta = max(0, units - (row and row[3] or 0)) - (row and row[1] or 0)
  if delta > 0 then
    bill.enter(level, L.name, L.bill, delta, s.start, s.fin)
    row = bill.book(level, L.name)
    row[1] = row[1] + delta
  end
  return row and row[1] > 0
end

-- A hold has ended that charged a billed pool. What it keeps was left out while it was open: in the period that runs
-- it counts from now on; of one that is over it is an entry of its own. Returns whether the record has to be written.
function bill.ended(level, part, c, keep, running)
  if running then
    local unlisted = keep > 0 and not has(level.flags, LISTED)
    if unlisted then
      bill.news(level).list = true
    end
    return unlisted
  end
  local units = part.bill == BY_USE and keep or max(0, part.over - (c - keep))
  if units > 0 then
    bill.enter(level, part.name, part.bill, units, part.mark, part.fin)
  end
  return units > 0
end
