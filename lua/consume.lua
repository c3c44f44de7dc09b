--- consume: charge every limit that the costs reach, on every level of the path, or none of them.
-- KEYS  1..n   record of each level of the subject, root first (n = 1..4)
--       n + 1  operation id; only with ARGV 5
--       then   for every level in h of ARGV 6: the hash and the sorted set of its holds
--       then   with e of ARGV 6: events, outbox and index of the partition
-- ARGV  1 now       test clock in ms as digits; empty: the server's clock
--       2 context   4 bytes catalog revision, 8 bytes first-sight policy (0: none), then the group that
--                   `join` asks for, or "!" where the records follow exactly that policy
--       3 costs     cost names, joined by commas; at the end "+" for the automatic amounts of limits that none reaches
--       4 amounts   one little-endian double per cost name, whole, 0 .. 10^15
--       5 op        empty, or 16 bytes of request digest and 6 of retention in ms
--       6 extra     empty, or msgpack {p = {policy = bytes}, m = {{level, from, old, to}},
--                   c = {{level, from, group, at, to, pools}}, h = {level}, e = 1}
-- RETURNS a string; its first byte is the status:
--       0 decided      the answer of lib/charge.lua
--       1 replayed     the stored answer of the operation id
--       2 need         8-byte names of policies to bring along; nothing was read or written
--       3 stale        per record behind the catalog: level, policy, revision (1 + 8 + 4 bytes)
--       4 conflict     the operation id belongs to another request
--       7 holds        levels (1 byte each) whose holds' keys are to be brought along; 0: the partition's
--       8 due          msgpack {{level, policy, revision, {{group, at, plan, definition}}}}: changes of plans whose
--                      instant has come, in order, for which no step was brought along
-- WRITES the records that were charged, first seen or moved, and the operation id; events, outbox, index. If
--       refused: the mark of a pool that says so for the first time, and its event
-- @needs base take once calendar event grants pool bucket slots policy implied request bill hold ledger
--   partition change record open store op charge kinds threshold holdcode compile plain spend
local function consume(keys, args)
  if #args ~= 6 then
    bad("consume takes 6 arguments")
  end
  local answer, values, instant, special = plain.answer(CHARGE, keys, args)
  return answer or spend(keys, args, values, instant, special)
end
