--- keys_update: change what is stored of an API key.
-- KEYS  1 API key
-- ARGV  1 state   "enabled", "disabled" or "revoked"; empty: as it is, as with all that follows
--       2 until   instant in ms as digits from which on it is refused, or "none"
--       3 label   its name behind "="; "-": none
--       4 notes   its meta as JSON text behind "="; "-": none
-- RETURNS a status: 5 done, 6 unknown
-- WRITES the API key
-- @needs base apikey
-- @flags allow-oom
local function keys_update(keys, args)
  if #keys ~= 1 or #args ~= 4 then
    bad("keys_update takes one key and 4 arguments")
  end
  local state = args[1]
  if state ~= "" and state ~= "enabled" and state ~= "disabled" and state ~= "revoked" then
    bad("state: enabled, disabled or revoked")
  end
  local expires
  if args[2] == "none" then
    expires = NEVER
  elseif args[2] ~= "" then
    expires = apikey.ms(args[2], "until", 15)
  end
  for _, text in ipairs({ args[3], args[4] }) do
    if text ~= "" and text ~= "-" and (sub(text, 1, 1) ~= "=" or #text < 2) then
      bad("label, notes: a text behind '=', or '-'")
    end
  end
  local entry = apikey.open(keys[1])
  if not entry or entry.revoked and state ~= "revoked" then
    return STATUS_UNKNOWN
  end
  if state ~= "" then
    entry.disabled, entry.revoked = state == "disabled", state == "revoked"
  end
  entry.expires = expires or entry.expires
  for i, field in ipairs({ "n", "m" }) do
    local given = args[i + 2]
    if given ~= "" then
      entry.about[field] = given ~= "-" and sub(given, 2) or nil
    end
  end
  apikey.put(keys[1], entry)
  return STATUS_DONE
end
