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

-- What stands as msgpack from `at` on.
function implied.variable(rec, at)
  local ok, var = pcall(munpack, sub(rec, at))
  if not ok or type(var) ~= "table" then
    unreadable(rec)
  end
  return var
end

-- The policy that a record names as it is laid out by it: with the pools that its grants imply. Nil stays nil.
function implied.under(level, parsed)
  if not parsed or level.flags < IMPLIED then
    return parsed
  end
  local count = byte(level.rec, parsed.tail)
  if not count then
    unreadable(level.rec)
  end
  local at = grants.behind(level, parsed.tail + 1 + count * SIZES[POOL])
  local ok, found = pcall(policy.implying, parsed, implied.variable(level.rec, at).i)
  if not ok or #found.implied ~= count then
    unreadable(level.rec)
  end
  return found
end

-- The same of the policy of that name; nil: it is not at hand.
function implied.laid_out(level, fp, blobs)
  return implied.under(level, policy.get(fp, blobs))
end
