--- release: end a hold and give back all that it charged.
-- KEYS  1..n   record of each level of the subject, root first (n = 1..4)
--       n + 1  end of the hold, kept like an operation id
--       then   for every level in h of ARGV 4: the hash and the sorted set of its holds
--       then   with e of ARGV 4: events, outbox and index of the partition
-- ARGV  1 now       as consume
--       2 context   as consume
--       3 op        as consume; never empty
--       4 extra     as consume; names every level in h
--       5 hold      its id
-- RETURNS a status: 1 replayed, 2 need, 3 stale, 4 conflict (it was committed), 5 done (also where there is none),
--       7 holds, 8 due
-- WRITES the records, their holds, and the end of the hold; events, outbox, index
-- @needs base take calendar event grants pool bucket slots policy implied request bill hold ledger partition
--   change record open store op charge kinds threshold holdcode compile finish quick slow
-- @flags allow-oom
local function release(keys, args)
  if #args ~= 5 or args[3] == "" then
    bad("release takes 5 arguments, the third not empty")
  end
  local ended, values, instant = quick.release(keys, args)
  if ended then
    return ended
  end
  local id = finish.id(args[5])
  local passed = { args[1], args[2], "", "", args[3], args[4] }
  local count, now, end_key, entries, any = finish.read(keys, passed, id, values, instant)
  if not count then
    return now
  end
  if any then
    local kept = {}
    for j = 1, #any.names do
      kept[j] = 0
    end
    finish.settle(count, id, entries, kept, now)
    for i = 1, count do
      slices[i] = nil
      if not entries[i] then
        levels[i].fresh, levels[i].moved = false, false
      end
    end
    local note = op.note(RELEASED, op.below(keys[1], keys[count]), "", "", spack("<I6", now))
    return charge.commit(count, now, passed, end_key, STATUS_DONE, note) or STATUS_DONE
  end
  return STATUS_DONE
end
