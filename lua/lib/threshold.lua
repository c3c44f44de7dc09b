-- From what use on a pool has something to say, for the functions that lib/compile.lua makes.
-- @gives threshold

local threshold = {}

-- Whether a period may bring something into the next one.
function threshold.carries(L)
  return L.kind == POOL and (L.rollover > 0 or L.carry_debt)
end

-- By the bytes of what a pool has drawn, over and carried, and of its marks: from what use on it has something to
-- say; false where it is not plain.
function threshold.of(L)
  return setmetatable({}, {
    __index = function(cache, rest)
      local drawn, over, carried, said = sunpack("<I7I7i7I2", rest)
      if drawn + over > 0 or carried ~= 0 then
        return false
      end
      local at = L.limit == NONE and huge or next_mark(L, said, L.limit)
      rawset(cache, rest, at)
      return at
    end,
  })
end

-- The same of a pool that may carry something in, as a function: what it may give in all, and that use; nil where it
-- is not plain.
function threshold.carried(L)
  return function(rest)
    local drawn, over, carried, said = sunpack("<I7I7i7I2", rest)
    if drawn + over > 0 or carried < 0 then
      return nil
    elseif L.limit == NONE then
      return 0, huge
    end
    local total = L.limit + carried
    return total, next_mark(L, said, total)
  end
end

-- The same where grants are, of the marks and the total; nil where a pool warns of nothing. And what bounds it from
-- below: a share of the total in millionths, and so many units less than that.
function threshold.granted(L)
  local low, below = 1000000, 0
  if L.limit == NONE or #L.warn_at + #L.warn_below == 0 then
    return nil, low, below
  end
  for _, millionths in ipairs(L.warn_at) do
    low = min(low, millionths)
  end
  for _, units in ipairs(L.warn_below) do
    below = max(below, units)
  end
  return function(said, total)
    return next_mark(L, said, total)
  end, low, below
end
