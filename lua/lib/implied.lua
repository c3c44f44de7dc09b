-- Pools that no plan of a record includes, which are there for its grants: a policy with them (policy.implying)
-- is what the record is laid out by.
-- @gives implied

local implied = {}

-- A policy with the pools of this record's grants that it does not include.
function implied.pools(level, parsed)
  parsed = parsed.base or parsed
  local names, seen = {}, {}
  for _, g in ipairs(level.grants or {}) do
    if not parsed.names[g.pool] and not seen[g.pool] then
      names[#names + 1], seen[g.pool] = g.pool, true
    end
  end
  table.sort(names)
  return names[1] and policy.implying(parsed, names) or parsed
end

-- The policy of a record that was read, with the pools that its grants imply. `at`: where it says what
-- follows its states.
function implied.read(level, parsed)
  local rec, at = level.rec, parsed.tail
  local count = byte(rec, at)
  if not count then
    error("METERD-LAYOUT a record of " .. #rec .. " bytes", 0)
  end
  at = at + 1 + count * SIZES[POOL]
  at = at + (has(level.flags, TTL) and 6 or 0) + (has(level.flags, HOLDS) and 6 or 0)
  if has(level.flags, GRANTS) then
    at = at + grants.digest_size(rec, at)
  end
  local names = munpack(sub(rec, at)).i
  return policy.implying(parsed, names)
end
