--- unsubscribe: take a plan away; limits that no other plan includes are dropped.
-- KEYS  1 record
--       2.. the records of up to three levels above, read for when they were last seen
--       then   for every level in h of ARGV 3: the hash and the sorted set of its holds
-- ARGV  1 now, 2 context, 3 extra: as consume's 1, 2 and 6; a move says what the record becomes
-- RETURNS a status: 2 need, 3 stale (also where no move fits the record), 5 done, 6 there is no record,
--       7 holds
-- WRITES the record; nothing where there is none
-- @needs base take calendar event grants pool bucket slots policy implied request bill hold ledger partition
--   record store op assign
local function unsubscribe(keys, args)
  if #args ~= 3 then
    bad("unsubscribe takes 3 arguments")
  end
  local context = request.context(args[2])
  local now, status = assign.read(keys, args[1], args[2], args[3], nil, function(level, to, now)
    if level.rec then
      assign.plans(level, to, context.rev, now, false, nil, {})
    end
  end)
  if not now then
    return status
  end
  if not levels[1].rec then
    return STATUS_UNKNOWN
  end
  return assign.commit(keys, now, args[1])
end
