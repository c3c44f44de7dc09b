--- keys_rotate: give an API key another secret.
-- KEYS  1 API key
-- ARGV  1 now       as consume
--       2 sha       SHA-256 of the new secret, 32 bytes
--       3 overlap   ms as digits for which the secret it has is good beside the new one
-- RETURNS a status: 5 done, also where it has the new secret already; 6 unknown
-- WRITES the API key
-- @needs base apikey
-- @flags allow-oom
local function keys_rotate(keys, args)
  if #keys ~= 1 or #args ~= 3 then
    bad("keys_rotate takes one key and 3 arguments")
  end
  local sha, overlap = apikey.digest(args[2]), apikey.ms(args[3], "overlap", 14)
  local now = clock(args[1])
  local entry = apikey.open(keys[1])
  if not entry or entry.revoked then
    return STATUS_UNKNOWN
  elseif entry.sha ~= sha then
    entry.former, entry.until_ms = entry.sha, overlap > 0 and min(now + overlap, NEVER) or 0
    entry.sha = sha
    apikey.put(keys[1], entry)
  end
  return STATUS_DONE
end
