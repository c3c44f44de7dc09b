--- usage: a picture of every limit at every level.
-- KEYS  1..n   record of each level of the subject, root first (n = 1..4)
--       then   for every level in h of ARGV 3: the hash and the sorted set of its holds
-- ARGV  1 now, 2 context, 3 extra: as consume's 1, 2 and 6
-- RETURNS as consume without 1 and 4; behind the answer, per level with a record or a first sight:
--       level, policy (8 bytes), stored (0/1), length (2 bytes), and as msgpack the overrides (o), the grants
--       (k), changes that wait (p: group, at, plan, change), how many holds are open (n) and those that end first
--       (h: id, expiry, cost names, amounts, tallied)
-- WRITES nothing
-- @needs base take calendar event grants pool bucket slots policy implied request bill hold ledger partition
--   change record open store op charge
-- @flags no-writes
local function usage(keys, args)
  if #args ~= 3 then
    bad("usage takes 3 arguments")
  end
  charge.amounts("\0\0\0\0\0\0\240\63") -- 1.0: a limit fits if it admits one more
  local count, now = charge.read(keys, { args[1], args[2], "*", "", "", args[3] })
  if not count then
    return now
  end
  local unnamed = ""
  for i = 1, count do
    local H = levels[i].holds
    if H and H.due and not H.hash then
      unnamed = unnamed .. char(i)
    end
  end
  if unnamed ~= "" then
    return STATUS_HOLDS .. unnamed
  end
  local _, code = charge.decide(count, "*", 1, now, "take")
  local pieces = { charge.answer(count, now, code, code == OK) }
  for i = 1, count do
    local level = levels[i]
    if level.parsed then
      local var = level.var
      local shown = var and (var.o or var.p) and { o = var.o, p = change.list(var) }
      if level.grants then
        shown = shown or {}
        shown.k = grants.rows(level)
      end
      if level.holds and level.holds.due then
        shown = shown or {}
        shown.n, shown.h = hold.count(level), hold.list(level, now)
      end
      local bytes = shown and mpack(shown) or ""
      while #bytes > 65535 and shown.h and shown.h[1] do -- its length has two bytes
        for _ = 1, ceil(#shown.h / 2) do
          shown.h[#shown.h] = nil
        end
        bytes = mpack(shown)
      end
      pieces[#pieces + 1] = spack("<Bc8BI2", i, level.parsed.fp, level.fresh and 0 or 1, #bytes) .. bytes
    end
  end
  return concat(pieces)
end
