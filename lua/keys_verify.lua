--- keys_verify: see whether the secret of an API key is good, and charge the key and its owner as consume does.
-- KEYS  1..n   record of each level of the key's own subject, root first (n = 2..4)
--       n + 1  operation id; only with ARGV 5
--       then   the API key
--       then   for every level in h of ARGV 6: the hash and the sorted set of its holds
--       then   with e of ARGV 6: events, outbox and index of the partition
-- ARGV  1..6 as consume; 3, 4 and 5 empty: nothing is charged
--       7 sha      SHA-256 of the secret, 32 bytes
-- RETURNS as consume; besides 6 unknown, where there is no such key or it has another secret. Behind an
--       answer stands what keys_create got as `about`; the codes DISABLED and EXPIRED come only from here
-- WRITES as consume: the records that were charged, first seen or moved, and the operation id; events, outbox,
--       index. If refused: the mark of a pool that says so for the first time, and its event
-- @needs base take once calendar event grants pool bucket slots policy implied request bill hold ledger
--   partition change record open store op charge kinds threshold holdcode compile plain spend apikey
local function keys_verify(keys, args)
  if #args ~= 7 or #args[7] ~= 32 then
    bad("keys_verify takes 7 arguments, the last of 32 bytes")
  end
  local last = #keys
  if args[6] ~= "" then
    last = last - request.extra(args[6]).behind
  end
  local levels_end = args[5] == "" and last - 1 or last - 2
  if levels_end < 2 or levels_end > 4 then
    bad("keys: one per level of the path (2 to 4), that of the operation id, then that of the API key")
  end
  local key, values, now = keys[last], call("MGET", spread(keys, 1, last)), clock(args[1])
  local about, refusal = apikey.admit(key, values[last], args[7], now, values, levels_end)
  if not about then
    return refusal
  end
  -- From here on it is a call of consume.
  values[last] = nil
  for i = last, #keys do
    keys[i] = keys[i + 1]
  end
  local answer, special
  if args[6] == "" and args[3] ~= "" then
    local _
    answer, _, _, special = plain.path(CHARGE, keys, args, values, now)
  end
  if not answer then
    if args[3] == "" then
      if args[4] ~= "" or args[5] ~= "" then
        bad("costs: none, and something to charge")
      end
      return spack("<BBBBdd", 0, OK, 1, 0, now, NONE) .. about
    end
    answer = spend(keys, args, values, now, special)
  end
  return byte(answer) <= 1 and answer .. about or answer
end
