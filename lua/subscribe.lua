--- subscribe: give a record other plans; what was used is kept, or its pools start over.
-- KEYS  1 record
--       2 operation id; only with ARGV 6
--       then the records of up to three levels above, read for when they were last seen
--       then   for every level in h of ARGV 7: the hash and the sorted set of its holds
-- ARGV  1 now      as consume
--       2 context  as consume; its policy is what an unseen subject gets
--       3 change   "keep" or "reset"
--       4 anchor   instant in ms as digits from which the plan's pools count; empty: unchanged, or now
--       5 pools    names of the plan's pools, joined by commas; may be empty
--       6 op       as consume
--       7 extra    as consume; for a stored record a move says what it becomes
-- RETURNS a status: 1 replayed, 2 need, 3 stale (also where no move fits the record), 4 conflict, 5 done,
--       7 holds
-- WRITES the record and the operation id
-- @needs base take calendar event grants pool bucket slots policy implied request bill hold ledger partition
--   record store op assign
local function subscribe(keys, args)
  if #args ~= 7 then
    bad("subscribe takes 7 arguments")
  end
  local reset = args[3] == "reset"
  if not reset and args[3] ~= "keep" then
    bad("change: keep or reset")
  end
  local anchor = assign.instant(args[4], "anchor")
  local pools = {}
  if args[5] ~= "" then
    for _, name in ipairs(split_names(args[5])) do
      pools[name] = true
    end
  end
  local context = request.context(args[2])
  local now, status = assign.read(keys, args[1], args[2], args[7], args[6], function(level, to, now)
    if not to then
      bad("context: the policy of an unseen subject is missing")
    end
    assign.plans(level, to, context.rev, now, reset, anchor, pools)
  end)
  if not now then
    return status
  end
  return assign.commit(keys, now, args[1], args[6])
end
