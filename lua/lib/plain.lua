-- Charges and answers in one go where nothing is out of the ordinary: records of the caller's catalog, whose
-- pools go on in their periods and whose limits have enough left, and nothing brought along. Such a call takes
-- functions of its own (lib/compile.lua), which are made once a policy and cost names have come a few times.
-- @gives plain

-- How many functions are kept: the collector walks them. After how many uses one is made: that takes some
-- 0.1 to 0.3 ms. After how many calls that came too late for one everything starts over.
local MOST_FORMS, ENOUGH_USES, ENOUGH_LATE = 512, 8, 500000
local NO_BOUND = -NONE
local SHARED = "\129\161e\1" -- what a call brings along where it only names the partition's keys: {e = 1}

local plain = {}
-- By 3 * place + what is asked for, by the first 10 bytes of the record (layout, flags, policy), by cost names.
-- Places: the levels of a path; 0 is a record by itself, 5 one with an operation id beside it.
local forms, form_count, late_calls = {}, 0, 0
local BESIDE = 5
for i = 1, 18 do
  forms[i] = {}
end
local single = {}
-- From 2 on: what the levels that are charged answer, which ones they are, and their bytes from 15 on.
local sections, charged, changed = {}, {}, {}

-- Writes what was charged, in one command, so that a failure leaves all or nothing.
local function write_path(keys, values, shown, now, args, op_key, answer, asked)
  if shown == 2 and not op_key then
    call("SETRANGE", keys[charged[2]], "14", changed[2])
    return
  end
  local writes, op_ttl = {}, nil
  for k = 2, shown do
    local i, slice = charged[k], changed[k]
    writes[2 * k - 3], writes[2 * k - 2] = keys[i], sub(values[i], 1, 14) .. slice .. sub(values[i], 15 + #slice)
  end
  if op_key then
    writes[2 * shown - 1] = op_key
    local below = #keys > 2 and op.below(keys[1], keys[#keys - 1]) or ""
    local note = op.note(asked == REPORT and REPORTED or CONSUMED, below, args[3], args[4], "")
    writes[2 * shown], op_ttl = op.value(args[5], now, answer, args[1] ~= "", note)
  end
  call("MSET", spread(writes))
  if op_ttl then
    call("PEXPIRE", op_key, op_ttl)
  end
end

-- One record, and an operation id. Returns as plain.answer.
local function answer_once(asked, keys, args)
  local context = contexts[args[2]]
  op.check(args[5], keys[2])
  local values, now = call("MGET", keys[1], keys[2]), clock(args[1])
  local rec = values[1]
  local by_names = rec and forms[3 * BESIDE + asked][sub(rec, 1, 10)]
  local form = by_names and by_names[args[3]]
  if not form or not context then
    return nil, values, now
  end
  local answer, charged_rec, at = form(rec, now, context, args[4])
  if not answer then
    return nil, values, now, true
  end
  local stored = values[2] and op.find(values[2], args[5], at)
  if stored then
    return stored
  end
  local verb = asked == REPORT and REPORTED or CONSUMED
  local value, px = op.plain_value(args[5], at, answer, args[1] ~= "", verb, args[3], args[4])
  call("MSET", keys[1], charged_rec, keys[2], value)
  if px then
    call("PEXPIRE", keys[2], px)
  end
  return answer
end

-- A path of records, or an operation id. `values`, `now`: what is stored under the keys and the instant, where they
-- have been read. Returns as plain.answer.
function plain.path(asked, keys, args, values, now)
  local count, context, names = #keys, contexts[args[2]], args[3]
  local with_op = args[5] ~= "" and op.check(args[5], keys[count])
  if with_op then
    count = count - 1
  end
  if count < 1 or count > 4 or not context then
    return nil, values, now
  end
  if not values then
    values, now = call("MGET", spread(keys)), clock(args[1])
  end
  local shown, balance, whole = 1, NO_BOUND, false
  for i = 1, count do
    local rec = values[i]
    if rec then
      if with_op and has(byte(rec, 2) or 0, GRANTS) then
        return nil, values, now, true -- which grant a charge came from has to be noted
      end
      local by_names = forms[3 * i + asked][sub(rec, 1, 10)]
      local form = by_names and by_names[names]
      if not form then
        return nil, values, now
      end
      local section, left, slice = form.charge(rec, now, context, args[4])
      if not section then
        return nil, values, now, true
      end
      whole = whole or form.whole
      if section ~= "" then
        shown = shown + 1
        sections[shown], charged[shown], changed[shown] = section, i, slice
        if left < balance then
          balance = left
        end
      end
    elseif i == 1 then
      return nil, values, now
    end
  end
  if not whole then
    return nil, values, now
  end
  local stored = with_op and op.find(values[count + 1], args[5], now)
  if stored then
    return stored
  end
  sections[1] = spack("<BBBBdd", 0, 0, 1, shown - 1, now, balance < NO_BOUND and balance or NONE)
  local answer = join(sections, shown)
  if asked ~= CHECK and (shown > 1 or with_op) then
    write_path(keys, values, shown, now, args, with_op and keys[count + 1], answer, asked)
  end
  return answer
end

-- Returns the answer; or nil, the records and the instant of the call as far as they are known by now, and
-- whether it is certain that the call is not plain.
function plain.answer(asked, keys, args)
  if args[6] == SHARED then
    keys = { spread(keys, 1, #keys - 3) } -- the plain case has nothing for the partition
  elseif args[6] ~= "" then
    return nil
  end
  if #keys ~= 1 or args[5] ~= "" then
    local once = #keys == 2 and args[5] ~= "" and asked ~= CHECK
    return (once and answer_once or plain.path)(asked, keys, args)
  end
  local rec = call("GET", keys[1])
  local by_names = rec and forms[asked][sub(rec, 1, 10)]
  local form, context = by_names and by_names[args[3]], contexts[args[2]]
  if form and context then
    local now = clock(args[1])
    local answer = form(keys[1], rec, now, context, args[4])
    if answer then
      return answer
    end
    single[1] = rec
    return nil, single, now, true
  end
  single[1] = rec
  return nil, single
end

-- Makes the function that will do for the next call with these cost names on a record like this. `place`: as in
-- `forms`.
local function prepare(asked, level, place, names)
  local parsed, flags = level.parsed, level.flags
  local shape, on_path = policy.shape(parsed, names), place > 0 and place ~= BESIDE
  local head, at = sub(level.rec, 1, 10), 3 * place + asked
  local by_names = forms[at][head]
  if shape.plain == nil then
    shape.plain, shape.uses = compile.can(shape), 0
  end
  if shape.indexed and not has(flags, LISTED) and asked ~= CHECK then
    return -- the next call has to put it into the index first
  end
  shape.uses = shape.uses + 1
  if shape.uses < ENOUGH_USES or by_names and by_names[names] or not shape.plain then
    return
  end
  local granted
  if not on_path and not shape.whole or has(flags, TTL) and (place > 0 or not parsed.forgettable) then
    return
  elseif level.grants then
    granted = grants.only_pool(level)
    if not granted then
      return
    end
  end
  if form_count >= MOST_FORMS then
    -- What came too late does without; once that has cost enough, everything starts over.
    late_calls = late_calls + 1
    if late_calls < ENOUGH_LATE then
      return
    end
    form_count, late_calls, by_names = 0, 0, nil
    for i = 1, #forms do
      forms[i] = {}
    end
  end
  -- The write is behind us: whatever may be wrong with a function, the call has its answer.
  local bare = place == BESIDE
  local made, form = pcall(compile.form, parsed, shape, asked, flags, on_path and place or nil, granted, bare)
  if not made or not form then
    shape.plain = false
    return
  end
  if not by_names then
    by_names = {}
    forms[at][head] = by_names
  end
  by_names[names] = on_path and { charge = form, whole = shape.whole } or form
  form_count = form_count + 1
end

-- After a call that took the long way: it went well, or buckets refused it.
function plain.prepare(asked, count, names, op_key)
  if not loadstring then
    return
  end
  for i = 1, count do
    local level = levels[i]
    local flags = level.flags
    local plain_flags = level.rec and flags < IMPLIED and not has(flags, VAR)
    if plain_flags and level.parsed then
      prepare(asked, level, count > 1 and i or op_key and BESIDE or 0, names)
    end
  end
end
