-- Charges and answers in one go where nothing is out of the ordinary: one record, of the caller's catalog,
-- whose pools go on in their periods and whose limits have enough left; no operation id, nothing brought
-- along. Such a call takes a function of its own (lib/compile.lua), which is made once its policy and cost
-- names have come twice; so one that nothing outlives never makes any.
-- @gives plain

local MOST_FORMS = 512 -- the collector walks what is kept

local plain = {}
local forms = { {}, {} } -- by what is asked, first 10 bytes of the record (layout, flags, policy), cost names
local form_count, late_calls = 0, 0

-- Returns the answer; or nil, and the record and the instant of the call as far as they are known by now.
function plain.answer(asked, keys, args)
  if #keys ~= 1 or args[5] ~= "" or args[6] ~= "" then
    return nil
  end
  local rec = call("GET", keys[1])
  local by_names = rec and forms[asked][sub(rec, 1, 10)]
  local form, context = by_names and by_names[args[3]], contexts[args[2]]
  if not form or not context then
    return nil, rec
  end
  local now = clock(args[1])
  return form(keys[1], rec, now, context, args[4]), rec, now
end

-- After a call that took the long way: makes the function that will do for the next one like it.
function plain.prepare(asked, count, names)
  local level = levels[1]
  local flags, parsed = level.flags, level.parsed
  if count > 1 or not parsed or level.var or flags > TTL + FIRST then
    return
  end
  local shape = policy.shape(parsed, names)
  local head = sub(level.rec, 1, 10)
  local by_names = forms[asked][head]
  shape.uses = (shape.uses or 0) + 1
  if shape.uses < 2 or by_names and by_names[names] or not (loadstring and compile.can(shape)) then
    return
  end
  if form_count >= MOST_FORMS then
    -- What came too late does without; once that has cost enough, everything starts over.
    late_calls = late_calls + 1
    if late_calls < 32 * MOST_FORMS then
      return
    end
    forms, form_count, late_calls, by_names = { {}, {} }, 0, 0, nil
  end
  if not by_names then
    by_names = {}
    forms[asked][head] = by_names
  end
  by_names[names] = compile.form(parsed, shape, asked == CHARGE, flags >= TTL)
  form_count = form_count + 1
end
