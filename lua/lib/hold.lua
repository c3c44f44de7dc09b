-- Holds: what a reservation has charged, kept until it is committed, released or its time is over.
--
-- Two keys per record: a hash, id -> entry, and a sorted set of the ids by expiry in ms. The record knows
-- the earliest of these (`due`), so that a call compares one number. An entry is msgpack
--   {expiry, {cost names}, {amounts}, {tallied}, parts}
-- and a part {limit, kind, gen, mark, over, {factors}, {bill, end}, sources} is what the hold charged to one limit:
-- amounts times factors, in the period or window `mark`; `over`: how much of it went over; `gen`: see record.lua;
-- bill and end only of a pool that is billed: how, and when its period was to end (else 0); sources: where the rest
-- came from, if grants gave some of it (see grants.burn). What was tallied stays charged whatever becomes of the hold.
--
-- level.holds, where a record has holds or may get one: due (instant or nil), hash and order (the keys, if
-- given), gone (ids to remove), put ({id, expiry, bytes} to store), queue (expired ids and instants), brief
-- (whether the record, and so these keys, have a Redis TTL).
-- @gives hold MOST_HOLDS

local MOST_HOLDS = 10000
local CHUNK = 1000 -- values in one command: Lua's stack bounds them

local hold = {}

-- The keys of a record's holds: as its own, but for the kind; nil where it has none.
function hold.pair(key)
  local at = find(key, "}:s:", 1, true)
  if not at then
    return nil
  end
  local head, tail = sub(key, 1, at + 1), sub(key, at + 3)
  return head .. "h" .. tail, head .. "x" .. tail
end

-- Those of a level, which is told them.
function hold.name(level)
  local H = level.holds or {}
  level.holds = H
  local hash, order = hold.pair(level.key)
  if hash then
    H.hash, H.order = hash, order
  end
  return H
end

-- The same from the end of KEYS.
function hold.keys(level, hash, order)
  local H = hold.name(level)
  if not H.hash or hash ~= H.hash or order ~= H.order then
    bad("keys: those of the holds do not go with the record")
  end
end

local function check_numbers(count, list)
  for j = 1, count do
    if type(list[j]) ~= "number" then
      error("no number", 0)
    end
  end
end

local function check_sources(list)
  if type(list) ~= "table" or #list < 2 then
    error("no sources", 0)
  end
  for j = 1, #list, 2 do
    if type(list[j]) ~= "string" or list[j + 1] < 0 then
      error("no source", 0)
    end
  end
end

-- Fails where something is not what it should be.
local function unpacked(raw)
  local e = munpack(raw)
  local parts, names = {}, #e[2]
  if names < 1 or concat(e[2]) == "" or #e[5] < 1 then
    error("not the hold of anything", 0)
  end
  check_numbers(1, e)
  check_numbers(names, e[3])
  check_numbers(names, e[4])
  for i, p in ipairs(e[5]) do
    parts[i] = { name = p[1], kind = p[2], gen = p[3], mark = p[4], over = p[5], factors = p[6], sources = p[8] }
    if p[8] ~= nil then
      check_sources(p[8])
    end
    check_numbers(4, { p[2], p[3], p[4], p[5] })
    check_numbers(names, p[6])
    if p[7] ~= nil then
      check_numbers(2, p[7])
      if p[7][1] > 0 then
        parts[i].bill, parts[i].fin = p[7][1], p[7][2]
      end
    end
  end
  return { expiry = e[1], names = e[2], amounts = e[3], tallied = e[4], parts = parts }
end

local function decode(raw)
  local ok, entry = pcall(unpacked, raw)
  if not ok then
    error("METERD-LAYOUT a hold of " .. #raw .. " bytes", 0)
  end
  return entry
end

function hold.encode(entry)
  local parts = {}
  for i, p in ipairs(entry.parts) do
    parts[i] = { p.name, p.kind, p.gen, p.mark, p.over, p.factors }
    if p.bill or p.sources then
      parts[i][7], parts[i][8] = { p.bill or 0, p.fin or 0 }, p.sources
    end
  end
  return mpack({ entry.expiry, entry.names, entry.amounts, entry.tallied, parts })
end

-- How a part of a limit counts the amounts of `n` cost names.
function hold.factors(target, n)
  local factors = {}
  for j = 1, n do
    factors[j] = target.terms and 0 or target.term == j and target.factor or 0
  end
  for _, term in ipairs(target.terms or {}) do
    factors[term[1]] = factors[term[1]] + term[2]
  end
  return factors
end

-- The bytes of an entry as lib/compile.lua writes it, between the numbers that differ: expiry, amounts, marks, each
-- of 8 bytes. Every limit of the shape has a part, nothing is tallied. Returns them, and how long they are.
function hold.words(shape)
  local names, zeros, words = split_names(shape.key), {}, { "\149\207" }
  for j = 1, #names do
    words[j + 1], zeros[j] = "\207", 0
  end
  words[2] = mpack(names) .. char(144 + #names, 207)
  local before = mpack(zeros) .. char(144 + shape.count)
  for t = 1, shape.count do
    local L = shape[t].limit
    words[#words + 1] = before .. "\150" .. mpack(L.name) .. mpack(L.kind) .. "\0\207"
    before = "\0" .. mpack(hold.factors(shape[t], #names))
  end
  words[#words + 1] = before
  local lengths = {}
  for w, word in ipairs(words) do
    lengths[w] = #word
  end
  return words, lengths
end

-- Units of a part: what the hold's amounts, or other amounts for the same names, come to.
function hold.units(part, amounts)
  local total = 0
  for j, factor in ipairs(part.factors) do
    total = total + factor * amounts[j]
  end
  return total
end

-- How often a limit of this record began anew while holds were open.
function hold.generation(level, name)
  return level.var and level.var.g and level.var.g[name] or 0
end

-- All that is stored, by id; whoever asks has their keys.
function hold.entries(level)
  local H = level.holds
  if not H.entries then
    H.entries = {}
    local stored = call("HGETALL", H.hash)
    for i = 1, #stored, 2 do
      H.entries[stored[i]] = decode(stored[i + 1])
    end
  end
  return H.entries
end

-- Whether the period or window runs in which a part of a pool was charged, as the record's bytes have it.
function hold.runs(level, L, part)
  return L
    and L.kind == part.kind
    and hold.generation(level, part.name) == part.gen
    and sunpack("<I6", level.rec, L.offset) == part.mark
end

-- Whether the period of a pool is over, but still stands in the record's bytes.
function hold.over(level, L, now)
  local _, fin = sunpack("<I6I6", level.rec, L.offset)
  return fin > 0 and fin <= now
end

-- What the open holds have of the period of a pool that began at `start`: units, and how many of them went over.
-- Where their keys are not at hand, the call has to come again with them.
function hold.taken(level, name, start)
  local H, taken = level.holds, { units = 0, over = 0 }
  if not (H and H.due) then
    return taken
  elseif not H.hash then
    bill.news(level).holds = true
    return taken
  end
  local generation = hold.generation(level, name)
  for id, entry in pairs(hold.entries(level)) do
    if not (H.gone and H.gone[id] or H.done == id) then
      for _, part in ipairs(entry.parts) do
        if part.name == name and part.kind == POOL and part.mark == start and part.gen == generation then
          taken.units, taken.over = taken.units + hold.units(part, entry.amounts), taken.over + part.over
        end
      end
    end
  end
  return taken
end

-- A period of a pool is over: `ended` as pool.lua leaves it.
function hold.close(level, L, ended)
  bill.close(level, L, ended, L.bill > 0 and hold.taken(level, L.name, ended.start))
end

-- Gives back what an entry charged beyond what `kept` amounts come to, at the instant `now`. Slots come
-- back whole. Returns whether the record's bytes changed.
function hold.give_back(level, entry, kept, now, s)
  local changed = false
  for _, part in ipairs(entry.parts) do
    local L = level.parsed.names[part.name]
    local c, keep = hold.units(part, entry.amounts), hold.units(part, kept)
    local drawn
    if part.sources then
      drawn = grants.settle(level, part.sources, c - keep - min(c - keep, part.over), true, now)
      changed = true
      if L and L.implied and grants.last(level, L.name) <= now then
        bill.news(level).list = true -- nothing holds the pool any more
      end
    end
    local same = L and L.kind == part.kind and hold.generation(level, part.name) == part.gen
    if same then
      L = level.effective and level.effective[L.index] or L
      if keep < c or L.kind == SLOTS or L.kind == POOL and hold.over(level, L, now) then
        local rec = level.rec
        L:load(rec, now, s)
        if L.kind == POOL and s.ended then
          hold.close(level, L, s.ended) -- before it, so that what it keeps is not of the running period any more
        end
        L:give_back(part, c, keep, now, s, drawn)
        level.rec = sub(rec, 1, L.offset - 1) .. L:pack(s) .. sub(rec, L.offset + L.size)
        changed = true
      end
    end
    if part.bill then
      bill.ended(level, part, c, keep, hold.runs(level, L, part))
    end
  end
  return changed
end

-- The earliest expiry after `now`, not counting the hold `id`; nil if there is none.
function hold.next_due(H, now, id)
  local found = call("ZRANGEBYSCORE", H.order, "(" .. format("%.0f", now), "+inf", "WITHSCORES", "LIMIT", "0", "2")
  for i = 1, #found, 2 do
    if found[i] ~= id then
      return tonumber(found[i + 1])
    end
  end
  return nil
end

-- Ids and expiries of all that has expired by now, in the order in which they did.
local function expired(H, now)
  local queue = call("ZRANGEBYSCORE", H.order, "-inf", format("%.0f", now), "WITHSCORES")
  queue.at = 1
  return queue
end

-- Ends the holds that expire first, at the instant they do, and finds out who is next.
function hold.expire(level, at, now)
  local H = level.holds
  H.queue = H.queue or expired(H, now)
  H.gone = H.gone or {}
  local queue, due, s = H.queue, H.due, new_hand()
  while queue[queue.at] and tonumber(queue[queue.at + 1]) <= due do
    local id = queue[queue.at]
    local raw = call("HGET", H.hash, id)
    if raw then
      local entry = decode(raw)
      hold.give_back(level, entry, entry.tallied, at, s)
    end
    H.gone[#H.gone + 1] = id
    H.gone[id] = true
    queue.at = queue.at + 2
  end
  if queue[queue.at] then
    H.due = tonumber(queue[queue.at + 1])
  else
    H.due = hold.next_due(H, now)
  end
end

-- The open hold of that id, or nil.
function hold.find(level, id)
  local H = level.holds
  if not H or not H.due or not H.hash or H.gone and H.gone[id] then
    return nil
  end
  local raw = call("HGET", H.hash, id)
  return raw and decode(raw) or nil
end

-- How many holds are open.
function hold.count(level)
  local H = level.holds
  return H.due and call("HLEN", H.hash) - (H.gone and #H.gone or 0) or 0
end

-- The open holds that end first, at most 100, as {id, expiry, names, amounts, tallied}.
function hold.list(level, now)
  local H = level.holds
  local found = call("ZRANGEBYSCORE", H.order, "(" .. format("%.0f", now), "+inf", "LIMIT", "0", "100")
  local rows = {}
  for _, id in ipairs(found) do
    local raw = call("HGET", H.hash, id)
    if raw then
      local e = decode(raw)
      rows[#rows + 1] = { id, e.expiry, concat(e.names, ","), e.amounts, e.tallied }
    end
  end
  return rows
end

-- `but`: an id that is new again.
local function remove(verb, key, gone, but)
  local ids = gone
  if but and gone[but] then
    ids = {}
    for _, id in ipairs(gone) do
      ids[#ids + 1] = id ~= but and id or nil
    end
  end
  for i = 1, #ids, CHUNK do
    call(verb, key, spread(ids, i, min(i + CHUNK - 1, #ids)))
  end
end

-- Part of the write phase. What is new goes first: a key that loses its last member is gone.
-- `whole`: the record is written too, so what it gave back goes for good.
function hold.write(H, whole, ttl)
  if H.put then
    call("HSET", H.hash, H.put.id, H.put.bytes)
    call("ZADD", H.order, format("%.0f", H.put.expiry), H.put.id)
    if ttl then
      call("PEXPIRE", H.hash, ttl)
      call("PEXPIRE", H.order, ttl)
    end
  end
  if H.brief and whole and not ttl then
    call("PERSIST", H.hash)
    call("PERSIST", H.order)
  end
  if H.gone and whole then
    remove("HDEL", H.hash, H.gone, H.put and H.put.id)
    remove("ZREM", H.order, H.gone, H.put and H.put.id)
  end
  if H.done then
    call("HDEL", H.hash, H.done)
    call("ZREM", H.order, H.done)
  end
end
