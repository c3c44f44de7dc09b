--- forget: remove what is stored of subjects; what is billed and not in the outbox yet goes there first.
-- KEYS  1.. everything to remove: record, meta, holds, operation ids, ends of holds, API keys, top-ups; at most 256
--       then   with e of ARGV 2: events, outbox and index of the partition; records need them, and their holds
-- ARGV  1 now, 2 extra: as consume's 1 and 6
--       3 blind  "1": remove records that cannot be read, or whose policy is lost; else empty
-- RETURNS a status: 2 need (nothing was written), 5 done; behind that how many keys there were (4 bytes)
-- WRITES removes the keys; outbox, index
-- @needs base take calendar event grants pool bucket slots policy implied request bill hold ledger partition
--   change record open store crop
-- @flags allow-oom
local function forget(keys, args)
  if #args ~= 3 then
    bad("forget takes 3 arguments")
  end
  local extra = request.extra(args[2])
  local n = #keys - extra.behind
  if n < 1 or n > 256 or extra.h then
    bad("keys: 1 to 256 to remove, then those of the partition")
  elseif args[3] ~= "" and args[3] ~= "1" then
    bad("blind: 1 or empty")
  end
  local now, named, records, parsed, need = clock(args[1]), {}, {}, {}, ""
  for i = 1, n do
    named[keys[i]] = true
    if find(keys[i], "^[^{]*{[^}]*}:s:") then
      records[#records + 1] = keys[i]
    end
  end
  local values = records[1] and call("MGET", spread(records)) or {}
  for i, value in ipairs(values) do
    local readable = value and byte(value) == LAYOUT and #value >= HEADER
    if readable and args[3] == "1" then
      local good, found = pcall(policy.get, sub(value, 3, 10), extra.p)
      parsed[i] = good and found or nil
    elseif readable then -- in hand from here on: those that are parsed for others may take its place
      parsed[i] = policy.get(sub(value, 3, 10), extra.p)
      need = need .. (parsed[i] and "" or sub(value, 3, 10))
    end
    values[i] = value or ""
  end
  if need ~= "" then
    return STATUS_NEED .. need
  elseif records[1] then
    partition.open({ records[1], keys[n + 1], keys[n + 2], keys[n + 3] }, true)
  end
  for i, value in ipairs(values) do
    if value ~= "" and args[3] == "1" then
      pcall(crop.last, records[i], value, parsed[i], named, now)
    elseif value ~= "" then
      crop.last(records[i], value, parsed[i], named, now)
    end
  end
  return STATUS_DONE .. spack("<I4", call("DEL", spread(keys, 1, n)))
end
