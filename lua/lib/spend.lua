-- What consume does where the plain case has no answer: test every limit that the costs reach, on every level of
-- the path, and charge all of them or none.
-- @gives spend

-- `values`, `instant`: what is stored under the keys and the instant of the call, as far as they are known.
-- `special`: it is certain that the call is not plain. Returns the answer, or the status to answer instead.
local function spend(keys, args, values, instant, special)
  local amount_count = charge.amounts(args[4])
  local count, now, op_key = charge.read(keys, args, values, instant)
  if not count then
    return now
  end
  local answer = not special and charge.plainly(count, args[3], amount_count, now)
  local note, lacking
  if answer then
    note = op_key and charge.note(count, CONSUMED, args[3], args[4])
    lacking = charge.commit(count, now, args, op_key, answer, note)
    if lacking then
      return lacking
    end
    plain.prepare(CHARGE, count, args[3], op_key)
    return answer
  end
  local total, code = charge.decide(count, args[3], amount_count, now)
  if code ~= OK then
    if code == RATE_LIMITED then
      plain.prepare(CHARGE, count, args[3], op_key)
    end
    answer = charge.answer(count, now, code, false)
    return code == USAGE_EXCEEDED and charge.exhaust(count, now) or answer
  end
  charge.apply(total, now, false)
  answer = charge.answer(count, now, OK, true)
  charge.slices(count, now)
  note = op_key and charge.note(count, CONSUMED, args[3], args[4], total)
  lacking = charge.commit(count, now, args, op_key, answer, note)
  if lacking then
    return lacking
  end
  plain.prepare(CHARGE, count, args[3], op_key)
  return answer
end
