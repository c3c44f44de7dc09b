-- Reservations where nothing is out of the ordinary: made, committed and released by functions of their own
-- (lib/compile.lua), as lib/plain.lua does it for charges. A record by itself, whose pools nobody bills and grants
-- do not fill; whatever else there may be takes the long way.
-- @gives quick

-- As in lib/plain.lua: after how many uses functions are made, three for each shape and at most for so many of these;
-- after how many calls that came too late everything starts over.
local ENOUGH_USES, MOST_SHAPES, ENOUGH_LATE = 8, 64, 500000
local ONLY_HOLDS = "\129\161h\145\1" -- what a call brings along that names the holds of one record: {h = {1}}

local quick = {}
-- By the first 10 bytes of the record (layout, flags, policy), then by cost names; and functions that end a hold, in
-- a list, since a hold says itself what it is of.
local making, ending, shape_count, late_calls = {}, {}, 0, 0

-- Whether these are the keys of the record's holds.
local function go_together(key, hash, order)
  local its_hash, its_order = hold.pair(key)
  return hash == its_hash and order == its_order
end

-- As reserve. Or nil: it takes the long way, and nothing was written; then what is stored under the keys and the
-- instant of the call, as far as they are known by now.
function quick.reserve(keys, args)
  local context = contexts[args[2]]
  if #keys ~= 3 or args[5] ~= "" or args[6] ~= ONLY_HOLDS or not context then
    return nil
  end
  local id, ttl = finish.id(args[7]), finish.ttl(args[8])
  local rec = call("GET", keys[1])
  local by_names = rec and making[sub(rec, 1, 10)]
  local form = by_names and by_names[args[3]]
  if not form or not go_together(keys[1], keys[2], keys[3]) then
    return nil, { rec }
  end
  local now = clock(args[1])
  local answer, whole, entry, expiry = form(rec, now, context, args[4], ttl)
  if not answer then
    return nil, { rec }, now
  elseif #whole > #rec then
    call("SET", keys[1], whole)
  elseif call("HEXISTS", keys[2], id) == 1 or call("HLEN", keys[2]) >= MOST_HOLDS then
    return nil, { rec }, now
  else
    call("SETRANGE", keys[1], "14", sub(whole, 15))
  end
  call("HSET", keys[2], id, entry)
  call("ZADD", keys[3], format("%.0f", expiry), id)
  return answer
end

-- Ends the hold `id`, and returns as quick.reserve. `names`, `used`: what of it was used, empty: all. `all_back`: what
-- to answer where all of it goes back.
local function end_one(keys, now_text, context, names, used, op_text, id, all_back)
  context = contexts[context]
  if #keys ~= 4 or not context or not op.check(op_text, keys[2]) or not go_together(keys[1], keys[3], keys[4]) then
    return nil
  end
  id = finish.id(id)
  local values = call("MGET", keys[1], keys[2])
  local rec = values[1]
  local forms = rec and ending[sub(rec, 1, 10)]
  local raw = forms and call("HGET", keys[3], id)
  if not raw then
    return nil, values
  end
  local now, made = clock(now_text), nil
  local answer, changed, slice, at, due, expiry, packed, shares
  for _, form in ipairs(forms) do
    if names == "" or names == form.names then
      answer, changed, slice, at, due, expiry, packed, shares = form.run(rec, now, context, used, raw, all_back)
      if answer then
        made = form
        break
      end
    end
  end
  if not made then
    return nil, values, now
  end
  local note
  if all_back then
    note = op.note(RELEASED, "", "", "", spack("<I6", at))
  else
    note = op.note(COMMITTED, "", made.names, packed, shares)
  end
  local first = due
  if expiry <= due then
    due = call("HLEN", keys[3]) > 1 and hold.next_due({ order = keys[4] }, at, id) or nil
  end
  local value, px = op.value(op_text, at, answer, now_text ~= "", note)
  if changed or due ~= first then
    local flags, ends = byte(rec, 2), due and spack("<I6", due) or ""
    local whole = sub(rec, 1, 1) .. char(due and flags or flags - HOLDS) .. sub(rec, 3, 14) .. slice .. ends
    call("MSET", keys[1], whole, keys[2], value)
  else
    call("MSET", keys[2], value)
  end
  call("HDEL", keys[3], id)
  call("ZREM", keys[4], id)
  if px then
    call("PEXPIRE", keys[2], px)
  end
  return answer
end

-- As commit.
function quick.commit(keys, args)
  if args[6] ~= ONLY_HOLDS or args[5] == "" or (args[3] == "") ~= (args[4] == "") then
    return nil
  end
  return end_one(keys, args[1], args[2], args[3], args[4], args[5], args[7])
end

-- As release.
function quick.release(keys, args)
  if args[4] ~= ONLY_HOLDS then
    return nil
  end
  return end_one(keys, args[1], args[2], "", "", args[3], args[5], STATUS_DONE)
end

local function billed(shape)
  for t = 1, shape.count do
    if shape[t].limit.kind == POOL and shape[t].limit.bill > 0 then
      return true
    end
  end
  return false
end

-- Makes the functions for the next reservation with these cost names on a record like this, and for its end.
function quick.prepare(count, names)
  local level, flags = levels[1], levels[1].flags
  local parsed = level.parsed
  if count > 1 or not loadstring or not parsed or level.grants or flags >= IMPLIED or has(flags, VAR) then
    return
  elseif has(flags, TTL) or has(flags, GRANTS) or has(flags, BOOKS) or sub(names, -1) == "+" then
    return
  end
  local shape = policy.shape(parsed, names)
  shape.quick_uses = (shape.quick_uses or 0) + 1
  if shape.quick_uses < ENOUGH_USES or shape.indexed and not has(flags, LISTED) then
    return
  elseif shape.count == 0 or not shape.whole or not compile.can(shape) or billed(shape) then
    return
  end
  flags = has(flags, HOLDS) and flags - HOLDS or flags
  local first, rest = sub(level.rec, 1, 1), sub(level.rec, 3, 10)
  local free, taken = first .. char(flags) .. rest, first .. char(flags + HOLDS) .. rest
  if making[free] and making[free][names] then
    return
  elseif shape_count >= MOST_SHAPES then
    late_calls = late_calls + 1
    if late_calls < ENOUGH_LATE then
      return
    end
    making, ending, shape_count, late_calls = {}, {}, 0, 0
  end
  -- The write is behind us: whatever may be wrong with a function, the call has its answer.
  local fine, on_free, on_taken, run = pcall(compile.holding, parsed, shape, flags)
  if not fine or not (on_free and on_taken and run) then
    shape.quick_uses = -huge
    return
  end
  making[free], making[taken] = making[free] or {}, making[taken] or {}
  making[free][names], making[taken][names] = on_free, on_taken
  ending[taken] = ending[taken] or {}
  table.insert(ending[taken], { names = names, run = run })
  shape_count = shape_count + 1
end
