-- The write phase of every call that opens records.
-- @gives store

local store = {}

-- Moves the instant of the Redis TTL on, so that the record outlives `at`: it only ever grows, and not with
-- every call.
local function extend(level, at)
  local tail = level.parsed.tail
  level.expires = at + 2 * level.parsed.forgettable
  level.rec = sub(level.rec, 1, tail - 1) .. spack("<I6", level.expires) .. sub(level.rec, tail + 6)
  level.settled = true
end

-- The record is to be stored whole, with `slice` (as in store.write) in its place.
function store.put_whole(level, slice, now)
  local state = slice and sub(slice, 7) or ""
  state = state .. sub(level.rec, HEADER + 1 + #state, level.parsed.tail - 1)
  record.rebuild(level, level.rev, now, state)
  level.moved = true
end

-- Another earliest expiry of the record's holds (nil: none is open). `slice`: as in store.write, which
-- then stores the record whole, without it.
function store.put_due(level, due, slice, now)
  level.holds.due = due
  if not due then
    record.drop_generations(level)
  end
  store.put_whole(level, slice, now)
end

-- The bytes to store, where `slice` replaces those from 15 on.
local function sliced(level, slice)
  if not slice then
    return level.rec
  end
  return sub(level.rec, 1, 14) .. slice .. sub(level.rec, 15 + #slice)
end

-- What the records to be written have to tell needs keys that the call has not named: asks for them. Else nil.
local function lacking(count, slices)
  local asked, any = "\0", false
  for i = 1, count do
    local level = levels[i]
    if level.news and (slices[i] or level.fresh or level.moved) then
      any = true
      if level.news.holds then
        asked = asked .. char(i)
      end
    end
  end
  return any and (not partition.named() or #asked > 1) and STATUS_HOLDS .. asked or nil
end

-- Whether the record stands in the index for the first instant at which it may have to.
function store.mark_listed(level, listed)
  if has(level.flags, LISTED) ~= listed then
    level.flags = level.flags + (listed and LISTED or -LISTED)
    level.rec = sub(level.rec, 1, 1) .. char(level.flags) .. sub(level.rec, 3)
    level.settled = true
  end
end

-- What of the news of a record changes the record itself. Returns its slice, nil where it is to be stored whole.
local function enter(level, slice, now)
  local news = level.news
  if news.list then
    local at = ledger.due(level, level.parsed, sliced(level, slice))
    if news.list ~= true then
      at = min(at, news.list)
    end
    if at < huge then
      partition.list(level.key, max(at, now))
    end
    store.mark_listed(level, true)
  end
  if news.books then
    news.books.i = partition.bill(level, news.entries, news.books.i, now)
    level.var = level.var or {}
    level.var.b = news.books
    store.put_whole(level, slice, now)
    slice = nil
  end
  return slice
end

-- The first instant at which nothing in the record differs from an unseen subject's, at most.
local function lasts(level, now)
  local put = level.holds and level.holds.put
  return put and max(now, put.expiry) or now
end

-- Stores one record that has no operation id beside it.
local function write_one(level, slice, now, extended)
  if not (level.fresh or level.moved or level.settled) then
    call("SETRANGE", level.key, 14, slice)
  elseif extended then
    call("SET", level.key, sliced(level, slice), "PX", format("%.0f", level.expires - now))
  elseif has(level.flags, TTL) then
    call("SET", level.key, sliced(level, slice), "KEEPTTL")
  else
    call("SET", level.key, sliced(level, slice))
  end
end

local function write_holds(count, slices, now)
  for i = 1, count do
    local level = levels[i]
    if level.holds and level.flags then -- a level without a record has none
      local written = slices[i] or level.fresh or level.moved
      hold.write(level.holds, written, has(level.flags, TTL) and format("%.0f", level.expires - now) or nil)
    end
  end
end

-- Stores what changed. `slices` and the rest as in store.write.
local function put(count, slices, now, op_key, op_value, op_ttl, own_key, own_value, own_ttl)
  local writes, only, extended, holds = 0, 1, false, false
  for i = 1, count do
    local level = levels[i]
    holds = holds or level.holds
    if slices[i] or level.fresh or level.moved then
      writes, only = writes + 1, i
      if level.flags >= TTL and has(level.flags, TTL) then
        local at = lasts(level, now)
        if level.expires < at + level.parsed.forgettable then
          extend(level, at)
          extended = true
        end
      end
    end
  end
  if writes == 1 and not op_key then
    write_one(levels[only], slices[only], now, extended)
    if holds then
      write_holds(count, slices, now)
    end
    return
  end
  local sets, n = {}, 0
  for i = 1, count do
    local level = levels[i]
    if slices[i] or level.fresh or level.moved then
      sets[n + 1], sets[n + 2] = level.key, sliced(level, slices[i])
      n = n + 2
    end
  end
  if op_key then
    sets[n + 1], sets[n + 2] = op_key, op_value
    n = n + 2
  end
  if own_key then
    sets[n + 1], sets[n + 2] = own_key, own_value
    n = n + 2
  end
  if n > 0 then
    call("MSET", spread(sets))
  end
  if holds then
    write_holds(count, slices, now)
  end
  for i = 1, count do
    local level = levels[i]
    if (slices[i] or level.fresh or level.moved) and has(level.flags, TTL) then
      call("PEXPIRE", level.key, format("%.0f", level.expires - now))
    end
  end
  if op_key and op_ttl then
    call("PEXPIRE", op_key, op_ttl)
  end
  if own_key and own_ttl then
    call("PEXPIRE", own_key, own_ttl)
  end
end

-- With news: the index first, which may name more than there is; then what is billed, whose first id becomes the
-- record's; what is only told goes last.
local function put_and_tell(count, slices, now, ...)
  local written = {}
  for i = 1, count do
    local level = levels[i]
    if level.news and (slices[i] or level.fresh or level.moved) then
      slices[i], written[i] = enter(level, slices[i], now), true
    end
  end
  put(count, slices, now, ...)
  for i = 1, count do
    local level = levels[i]
    if written[i] then
      partition.say(level, level.news.events, now)
    end
  end
end

-- Everything that changed, the records and the operation id in one command, so that a failure leaves all
-- or nothing; then what belongs to holds; then TTLs, which only free memory.
-- `slices[i]` replaces bytes 15.. of level i's record. `own_...`: a second operation id. Returns nil; or a status to
-- answer, and nothing is written.
function store.write(count, slices, now, op_key, op_value, op_ttl, own_key, own_value, own_ttl)
  local news
  for i = 1, count do
    local level = levels[i]
    if level.grants and (slices[i] or level.fresh or level.moved) then -- a charge changes more than states
      store.put_whole(level, slices[i], now)
      slices[i] = nil
    end
    news = news or level.news
  end
  local status = news and lacking(count, slices)
  if not status then
    local write = news and put_and_tell or put
    write(count, slices, now, op_key, op_value, op_ttl, own_key, own_value, own_ttl)
  end
  return status or nil
end
