-- What has to be told when a record is laid out anew: periods that are over, pools that go or are billed in another
-- way, and whether harvest has to look earlier.
-- @gives ledger

local ledger = {}

-- When the first change of plans comes that waits (huge: none does): it may end periods.
function ledger.change(level)
  local first = huge
  for _, waiting in pairs(level.var and level.var.p or {}) do
    first = min(first, waiting.a)
  end
  return first
end

-- Whether harvest has to look at a pool with use: its period ends at some time.
function ledger.follows(level, L)
  return L.indexed or level.var and level.var.p ~= nil
end

-- By when harvest has to look at a record with these states: at once (0) where a pool may be billed, else at the
-- first end of a period, be it that a change of plans comes or that the last grant of a pool is over (huge: there is
-- none).
function ledger.due(level, parsed, rec)
  if parsed.billed then
    return 0
  end
  local first = ledger.change(level)
  for _, L in ipairs(parsed.limits) do
    if L.kind == POOL and L.indexed then
      local _, fin = sunpack("<I6I6", rec, L.offset)
      fin = L.implied and grants.last(level, L.name) or fin
      if fin > 0 and fin < NEVER then
        first = min(first, fin)
      end
    end
  end
  return first
end

-- A pool is no longer in the record, or makes way for another kind of limit: its period ends now.
function ledger.drop(level, before, now)
  local s = new_hand()
  before:load(level.rec, now, s)
  if s.ended then
    hold.close(level, before, s.ended)
  end
  local ended = before:dropped(now, s)
  if ended then
    hold.close(level, before, ended)
  end
end

-- The state of a pool has been brought over; `ended`: a period that was over before that.
function ledger.move(level, before, L, s, ended)
  if ended then
    hold.close(level, before, ended)
  end
  if s.ended and s.ended ~= ended then
    hold.close(level, before, s.ended) -- the move itself has closed a period
  end
  if before.bill ~= L.bill then
    bill.switch(level, before, L, s, hold.taken(level, L.name, s.start))
  end
end

-- A record that was laid out anew; before that, harvest had to look by `due`. What is in the index for a later
-- instant, or not at all, has to go into it again if there is use, or if what was harvested has come back since: that
-- is still to be said when the period ends.
function ledger.relist(level, due)
  if has(level.flags, LISTED) then
    if ledger.due(level, level.parsed, level.rec) >= due then
      return
    end
    level.flags = level.flags - LISTED
    level.rec = sub(level.rec, 1, 1) .. char(level.flags) .. sub(level.rec, 3)
  end
  for _, L in ipairs(level.parsed.limits) do
    if L.kind == POOL and ledger.follows(level, L) then
      local used, drawn, over = sunpack("<I7I7I7", level.rec, L.offset + 18)
      local row = bill.known(level, L.name)
      if used + drawn + over > 0 or row and row[1] > 0 then
        bill.news(level).list = true
      end
    end
  end
end
