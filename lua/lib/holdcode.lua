-- What the entry of a hold is to the functions that lib/compile.lua makes for reservations, as text.
-- @gives holdcode

local holdcode = {}

-- The amounts of a hold, in the words of its entry (hold.words), and how much of them is kept: `amounts` (empty: all),
-- or with `all_back` nothing.
function holdcode.amounts(shape, lengths)
  local n, size, pattern, names, tests, kept, fits = shape.names, -8, ">", {}, {}, {}, {}
  for w = 1, #lengths do
    pattern, size = pattern .. "c" .. format("%.0f", lengths[w]) .. (w < #lengths and "I8" or ""), size + lengths[w] + 8
    names[2 * w - 1], tests[w] = "w" .. w, format("w%d ~= W%d", w, w)
    if w < #lengths then
      names[2 * w] = w == 1 and "expiry" or w <= n + 1 and "h" .. w - 1 or "v" .. w - n - 1
    end
  end
  for j = 1, n do
    kept[j], fits[j] = "a" .. j, format("a%d >= 0 and a%d <= h%d and a%d %% 1 == 0", j, j, j, j)
  end
  local amounts_held = concat(kept, ", "):gsub("a", "h")
  return format([[
    if #raw ~= %d then return end
    local %s = sunpack("%s", raw)
    if %s then return end
    local %s = %s
    if all_back then
      %s = %s
    elseif amounts ~= "" then
      if #amounts ~= %d then return end
      %s = sunpack("<%s", amounts)
      if not (%s) then return end
    end]],
    size, concat(names, ", "), pattern, concat(tests, " or "), concat(kept, ", "), amounts_held,
    concat(kept, ", "), ("0, "):rep(n - 1) .. "0", 8 * n, concat(kept, ", "), ("d"):rep(n), concat(fits, " and "))
end

-- An expression for the entry of a hold, whose parts are known by `known_by`.
function holdcode.entry(shape, known_by)
  local values = { "W1", "expiry" }
  for j = 1, shape.names do
    values[#values + 1], values[#values + 2] = "W" .. j + 1, "a" .. j
  end
  for t = 1, shape.count do
    values[#values + 1], values[#values + 2] = "W" .. shape.names + t + 1, known_by[t]
  end
  values[#values + 1] = "W" .. shape.names + shape.count + 2
  return format('spack(">%sc0", %s)', ("c0I8"):rep(1 + shape.names + shape.count), concat(values, ", "))
end

-- Expressions for what the end of a hold notes: what was used by cost name, and by limit (as charge.sources).
function holdcode.kept(shape, add)
  local kept, some, shares = {}, {}, {}
  for j = 1, shape.names do
    kept[j] = "a" .. j
  end
  for t = 1, shape.count do
    some[t], shares[t] = format("c%d > 0", t), format("{ %d, c%d, v%d, 0 }", t, t, t)
  end
  add("if not (%s) then return end", concat(some, " and "))
  return format('spack("<%s", %s), mpack({ %s })', ("d"):rep(#kept), concat(kept, ", "), concat(shares, ", "))
end
