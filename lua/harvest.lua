--- harvest: put into the outbox what is billed and not there yet, and tell of periods that are over.
-- KEYS  1..n   records of one partition (n = 1..256)
--       then   for every number in ARGV 4: the hash and the sorted set of that record's holds
--       then   events, outbox and index of the partition
-- ARGV  1 now, 2 context, 3 extra: as consume's 1, 2 and 6; what 3 says of keys is not looked at
--       4 held   numbers of records whose holds are named, 2 bytes each
-- RETURNS a status: 2 need (nothing was written), 3 stale, 7 holds (both only if n = 1), 5 done; behind that how many
--       entries were written (4 bytes), how many records wait for their holds to be named (2), the numbers of these,
--       and of those that could not be read or are stale (2 each); they were left as they are
-- WRITES the records; events, outbox, index
-- @needs base take calendar event grants pool bucket slots policy implied request bill hold ledger partition
--   change record open store crop
local function harvest(keys, args)
  if #args ~= 4 then
    bad("harvest takes 4 arguments")
  end
  local context, given, pairs_at = request.context(args[2]), request.extra(args[3]), {}
  local held = #args[4] / 2
  local n = #keys - 3 - 2 * held
  if held % 1 > 0 or n < 1 or n > 256 then
    bad("keys: 1 to 256 records, two for each that holds are named of, three of the partition")
  end
  for j = 1, held do
    local i = sunpack("<I2", args[4], 2 * j - 1)
    if i < 1 or i > n then
      bad("held: the number of a record")
    end
    pairs_at[i] = n + 2 * j - 1
  end
  local now, values, need, asked = clock(args[1]), call("MGET", spread(keys, 1, n)), "", {}
  for i = 1, n do
    local fp = values[i] and #values[i] >= HEADER and sub(values[i], 3, 10)
    if fp and not asked[fp] and not policy.get(fp, given.p) then
      need, asked[fp] = need .. fp, true
    end
  end
  if need ~= "" then
    return STATUS_NEED .. need
  end
  local entries, waiting, left = 0, {}, {}
  local shared = #keys - 3
  for i = 1, n do
    local own, at = { keys[i] }, pairs_at[i]
    local extra = { p = given.p, m = given.m, c = given.c, h = at and { 1 }, e = 1, behind = at and 5 or 3 }
    own[2], own[3] = at and keys[at], at and keys[at + 1]
    for j = 1, 3 do
      own[(at and 3 or 1) + j] = keys[shared + j]
    end
    if n == 1 then
      local made, status = crop.record(own, values[1], context, extra, now, args[1] ~= "")
      if not made then
        return status
      end
      entries = made
    else
      local fine, made, status = pcall(crop.record, own, values[i], context, extra, now, args[1] ~= "")
      if fine and made then
        entries = entries + made
      else
        local list = fine and sub(status, 1, 1) == STATUS_HOLDS and waiting or left
        list[#list + 1] = spack("<I2", i)
      end
    end
  end
  return STATUS_DONE .. spack("<I4I2", entries, #waiting) .. concat(waiting) .. concat(left)
end
