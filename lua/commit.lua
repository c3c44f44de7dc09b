--- commit: end a hold: what was used of it stays charged, what is missing is charged, the rest goes back.
-- KEYS  1..n   record of each level of the subject, root first (n = 1..4)
--       n + 1  end of the hold, kept like an operation id
--       then   for every level in h of ARGV 6: the hash and the sorted set of its holds
--       then   with e of ARGV 6: events, outbox and index of the partition
-- ARGV  1 now       as consume
--       2 context   as consume
--       3 costs     names of what was used; names that are missing are as held; empty: all of them
--       4 amounts   as consume; empty with 3
--       5 op        as consume; empty: nothing is kept of it, and of a hold that is over nothing is charged
--       6 extra     as consume; names every level in h
--       7 hold      its id
-- RETURNS as report; besides
--       6 unknown   there is no such hold (any more), and 3 says nothing to report instead, or 5 is empty
-- WRITES the records, their holds, and the end of the hold; events, outbox, index
-- @needs base take calendar event grants pool bucket slots policy implied request bill hold ledger partition
--   change record open store op charge kinds threshold holdcode compile finish quick slow
-- @flags allow-oom
local function commit(keys, args)
  if #args ~= 7 then
    bad("commit takes 7 arguments")
  end
  local ended, values, instant = quick.commit(keys, args)
  if ended then
    return ended
  end
  local names, text = {}, args[3]
  if text ~= "" then
    names = split_names(text)
    if charge.amounts(args[4]) ~= #names then
      bad("amounts: one per cost name")
    end
  elseif args[4] ~= "" then
    bad("amounts: one per cost name")
  end
  local id = finish.id(args[7])
  local count, now, end_key, entries, any = finish.read(keys, args, id, values, instant)
  if not count then
    return now
  end
  local kept, used, shares
  if any then
    kept, text, used = finish.split(any, names)
    finish.settle(count, id, entries, kept, now)
  elseif text == "" or args[5] == "" then
    return STATUS_UNKNOWN
  end
  local total, code = charge.decide(count, text, #split_names(text), now, "leave")
  if total == 0 and not any then
    return charge.answer(count, now, code, false)
  end
  charge.apply(total, now, true)
  charge.slices(count, now)
  if any then
    shares = finish.add_kept(count, entries, kept)
  end
  local answer = charge.answer(count, now, OK, true)
  local note = end_key and charge.note(count, COMMITTED, text, used or args[4], total, shares)
  return charge.commit(count, now, args, end_key, answer, note) or answer
end
