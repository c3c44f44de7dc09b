--- report: record use that has happened; pools go beyond their limit, buckets take what they have left.
-- KEYS  1..n   record of each level of the subject, root first (n = 1..4)
--       n + 1  operation id; only with ARGV 5
--       then   for every level in h of ARGV 6: the hash and the sorted set of its holds
--       then   with e of ARGV 6: events, outbox and index of the partition
-- ARGV  1..6   as consume
-- RETURNS as consume; not allowed only where no cost name reaches anything
-- WRITES the records that were charged, first seen or moved, and the operation id; events, outbox, index
-- @needs base take once calendar event grants pool bucket slots policy implied request bill hold ledger
--   partition change record open store op charge kinds threshold holdcode compile plain
local function report(keys, args)
  if #args ~= 6 then
    bad("report takes 6 arguments")
  end
  local answer, values, instant, special = plain.answer(REPORT, keys, args)
  if answer then
    return answer
  end
  local amount_count = charge.amounts(args[4])
  local count, now, op_key = charge.read(keys, args, values, instant)
  if not count then
    return now
  end
  answer = not special and charge.plainly(count, args[3], amount_count, now)
  if answer then
    local note = op_key and charge.note(count, REPORTED, args[3], args[4])
    local lacking = charge.commit(count, now, args, op_key, answer, note)
    if lacking then
      return lacking
    end
    plain.prepare(REPORT, count, args[3], op_key)
    return answer
  end
  local total, code = charge.decide(count, args[3], amount_count, now)
  if total == 0 then
    return charge.answer(count, now, code, false)
  end
  charge.apply(total, now, true)
  answer = charge.answer(count, now, OK, true)
  charge.slices(count, now)
  local note = op_key and charge.note(count, REPORTED, args[3], args[4], total)
  local lacking = charge.commit(count, now, args, op_key, answer, note)
  if lacking then
    return lacking
  end
  plain.prepare(REPORT, count, args[3], op_key)
  return answer
end
