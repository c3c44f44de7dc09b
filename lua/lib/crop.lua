-- One record, harvested: what is billed of its pools and not in the outbox yet goes there, periods that are over are
-- told of, and the index says when to look again.
-- @gives crop

local crop = {}
local no_slices = {}

-- Takes in what is new of every pool. Returns when a period ends first that has something to settle, and when any does
-- (huge: none).
local function take_in(level, now)
  local first, any, s = huge, huge, new_hand()
  for i, plain in ipairs(level.parsed.limits) do
    if plain.kind == POOL then
      local L = level.effective and level.effective[i] or plain
      L:load(level.rec, now, s)
      if s.ended then
        hold.close(level, L, s.ended)
        level.rec = sub(level.rec, 1, L.offset - 1) .. L:pack(s) .. sub(level.rec, L.offset + L.size)
        level.moved = true
      end
      local owing = L.bill > 0 and bill.harvest(level, L, s, hold.taken(level, L.name, s.start))
      local fin = L.implied and grants.last(level, L.name) or s.fin
      if fin <= now then -- of such a grant something is held
        fin = fin > 0 and level.holds and level.holds.due or huge
      elseif fin == NEVER then
        fin = huge
      end
      any = min(any, fin)
      if owing or s.used + s.drawn + s.over > 0 then
        first = min(first, fin, ledger.change(level))
      end
    end
  end
  return first, any
end

-- Harvests the record under keys[1]; `keys` and `extra` as of a call that names its holds, or does not, and the keys of
-- the partition. Returns how many entries that made; nil and a status if it is left as it is.
function crop.record(keys, value, context, extra, now, manual)
  local seen, status = open_records(keys, { value }, 1, context, extra, now, manual)
  if not seen then
    return nil, status
  end
  local level = levels[1]
  if not level.rec or level.fresh then
    partition.list(level.key, nil)
    return 0
  end
  local parsed = level.parsed
  local first, any = take_in(level, seen)
  local news = level.news
  if news and news.holds then
    return nil, STATUS_HOLDS .. "\1"
  end
  local H = level.holds
  if H and H.due then
    first = min(first, H.due) -- what it keeps may be billed when it ends
  end
  local listed = not parsed.billed and first < huge and first <= any
  if level.moved or news or has(level.flags, LISTED) ~= listed then
    if news then
      news.list = nil
    end
    store.mark_listed(level, listed)
    store.put_whole(level, nil, seen)
    store.write(1, no_slices, seen)
  end
  partition.list(level.key, first < huge and first or nil)
  return news and #news.entries or 0
end

-- Ends the holds of a record with it, now: what was tallied stays. Returns by pool what is not billed of the period
-- that stands in the record: units, and how many of them went over. What is kept of periods that are over becomes
-- entries.
local function give_up(level, now)
  local back = {}
  for _, entry in pairs(hold.entries(level)) do
    for _, part in ipairs(entry.parts) do
      local L = part.kind == POOL and level.parsed.names[part.name]
      local c, keep = hold.units(part, entry.amounts), hold.units(part, entry.tallied)
      local stands = hold.runs(level, L, part)
      local running = stands and not hold.over(level, L, now)
      if stands then
        local sum = back[part.name] or { units = 0, over = 0 }
        local less = running and c - keep or c
        sum.units, sum.over = sum.units + less, sum.over + min(less, part.over)
        back[part.name] = sum
      end
      if part.bill and not running then
        bill.ended(level, part, c, keep, false)
      end
    end
  end
  return back
end

-- The last harvest of a record that is about to be removed, with all its holds. `named`: KEYS by name. Returns whether
-- its policy is at hand.
function crop.last(key, rec, parsed, named, now)
  local level = levels[1]
  if not record.peek(level, key, rec, parsed) then
    return false
  end
  now = max(now, level.seen)
  if level.holds then
    hold.name(level)
    if not named[level.holds.hash] then
      bad("keys: the holds of a record go with it")
    end
  end
  local back, none = level.holds and give_up(level, now) or {}, { units = 0, over = 0 }
  for _, L in ipairs(level.parsed.limits) do
    if L.kind == POOL and L.bill > 0 then
      local start, fin, _, used, drawn, over = sunpack(POOL_FORMAT, rec, L.offset)
      local units = bill.units(L, used + drawn + over, over, back[L.name] or none)
      bill.last_word(level, L, units, start, fin)
    end
  end
  local news = level.news
  if news and #news.entries > 0 then
    partition.bill(level, news.entries, news.books.i, now)
  end
  partition.list(key, nil)
  return true
end
