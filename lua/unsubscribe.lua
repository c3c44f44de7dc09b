--- unsubscribe: take a plan away, now or later; limits that no other plan includes are dropped.
-- KEYS  1 record
--       2.. the records of up to three levels above, read for when they were last seen
--       then   for every level in h of ARGV 3: the hash and the sorted set of its holds
--       then   with e of ARGV 3: events, outbox and index of the partition
-- ARGV  1 now, 2 context, 3 extra: as consume's 1, 2 and 6; a move says what the record becomes
--       4 when     as subscribe's 8
--       5 group    of the plan; empty: not known, while no move is offered
--       6 leaving  as subscribe's 13
-- RETURNS a status: 2 need, 3 stale (also where no move fits the record), 5 done, 6 there is no record,
--       7 holds, 8 due
-- WRITES the record; events, outbox, index; nothing where there is no record
-- @needs base take calendar event grants pool bucket slots policy implied request bill hold ledger partition
--   change record open store op assign
local function unsubscribe(keys, args)
  if #args ~= 6 then
    bad("unsubscribe takes 6 arguments")
  end
  local context, when, group = request.context(args[2]), assign.when(args[4]), args[5]
  local leaving = assign.leaving(args[6])
  if group ~= "" then
    assign.name(group)
  end
  local now, status = assign.read(keys, args[1], args[2], args[3], nil, function(level, to, now)
    if not level.rec then
      return
    elseif group == "" then
      bad("group: missing")
    end
    local at = assign.later(level, when, leaving, now)
    record.wait(level, group, at and { a = at, c = "keep" } or nil, now)
    if not at then
      record.change(level, to, context.rev, now, group, "keep", nil, {})
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
