--- subscribe: give a record other plans, now or later; what was used is kept, or its pools start over.
-- KEYS  1 record
--       2 operation id; only with ARGV 6
--       then the records of up to three levels above, read for when they were last seen
--       then   for every level in h of ARGV 7: the hash and the sorted set of its holds
--       then   with e of ARGV 7: events, outbox and index of the partition
-- ARGV  1 now      as consume
--       2 context  as consume; its policy is what an unseen subject gets
--       3 change   "keep", "reset" or "prorate"
--       4 anchor   instant in ms as digits from which the plan's pools count; empty: unchanged, or now
--       5 pools    names of the plan's pools, joined by commas; may be empty
--       6 op       as consume
--       7 extra    as consume; for a stored record a move says what it becomes
--       8 when     empty: now; "period_end": at the next boundary of the plan that is left; or an instant in ms
--       9 group    of the plan
--       10 plan    its id
--       11 definition  8 bytes that name the definition of a private plan; else empty
--       12 before  with 8, the policy (8 bytes) that an unseen subject has until then; else empty
--       13 leaving  with 8, msgpack {policy = names of the pools of the plan that such a record leaves}; or empty
-- RETURNS a status: 1 replayed, 2 need, 3 stale (also where no move fits the record), 4 conflict, 5 done,
--       7 holds, 8 due
-- WRITES the record and the operation id; events, outbox, index
-- @needs base take calendar event grants pool bucket slots policy implied request bill hold ledger partition
--   change record open store op assign
local function subscribe(keys, args)
  if #args ~= 13 then
    bad("subscribe takes 13 arguments")
  end
  local how, group, before = args[3], assign.name(args[9]), args[12]
  if how ~= "keep" and how ~= "reset" and how ~= "prorate" then
    bad("change: keep, reset or prorate")
  end
  local anchor, when = assign.instant(args[4], "anchor"), assign.when(args[8])
  local pools, leaving = assign.names(args[5]), assign.leaving(args[13])
  local waiting = { i = assign.name(args[10]), h = args[11] ~= "" and args[11] or nil, c = how, n = anchor }
  if waiting.h and #waiting.h ~= 8 then
    bad("definition: 8 bytes, or empty")
  elseif #before ~= (when and 8 or 0) then
    bad("before: 8 bytes with an instant, else empty")
  end
  local until_then = when and policy.get(before, request.extra(args[7]).p)
  if when and not until_then then
    return STATUS_NEED .. before
  end
  local context = request.context(args[2])
  local now, status = assign.read(keys, args[1], args[2], args[7], args[6], function(level, to, now)
    if not to then
      bad("context: the policy of an unseen subject is missing")
    end
    local at = assign.later(level, when, leaving, now)
    if at and not level.rec then
      record.fresh(level, until_then, context.rev, now, 0)
    end
    waiting.a = at
    record.wait(level, group, at and waiting or nil, now)
    if not at then
      record.change(level, to, context.rev, now, group, how, anchor, pools)
    end
  end)
  if not now then
    return status
  end
  return assign.commit(keys, now, args[1], args[6], SUBSCRIBED)
end
