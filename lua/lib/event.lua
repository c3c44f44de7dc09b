-- What a pool has to say, once per period: that a threshold is crossed (warn), that nothing is left (exhausted), that
-- use has gone over (overage). Which of it has been said are the pool's marks: bit 0 exhausted, bit 1 overage, then
-- the thresholds of warn_at and warn_below, in their order.
--
-- A fraction counts of all that the period may give: the limit, what was carried in, what was drawn from grants
-- and what is left of them. What a charge makes a hand say stands in s.fired, until the charge is written.
-- @gives event

local event = {}

local function set(marks, bit)
  return marks % (bit * 2) >= bit
end

-- Use of the running period, and all that it may give.
local function use_and_total(L, s)
  local use, plus = s.used + s.drawn + s.over, max(0, s.carried)
  -- What is left is the room, and the grants, less what went over and less debt.
  local room = max(0, L.limit + plus - s.used)
  local granted = s.left - room + s.over + max(0, -s.carried)
  return use, L.limit + plus + s.drawn + granted
end

local function say(L, s, kind, threshold)
  local limit, use, left, _, fin = L:figures(0, s)
  s.fired = s.fired or {}
  s.fired[#s.fired + 1] = { kind, L.name, limit, use, left, s.start, fin, threshold }
end

-- A fraction as text: "0.8", "1.0".
local function fraction(millionths)
  return (format("%.6f", millionths / 1000000):gsub("(%.%d-)0+$", "%1"):gsub("%.$", ".0"))
end

-- After a charge: says what it makes true. The least that can be crossed is known, so this is seldom more than a sum.
function event.charged(L, s)
  if L.limit == NONE then
    return
  end
  local use, total = use_and_total(L, s)
  local bit = FIRST_WARN
  for _, millionths in ipairs(L.warn_at) do
    if not set(s.marks, bit) and use >= part_of(millionths, total) then
      s.marks = s.marks + bit
      say(L, s, "warn", fraction(millionths))
    end
    bit = bit * 2
  end
  for _, units in ipairs(L.warn_below) do
    if not set(s.marks, bit) and s.left <= units then
      s.marks = s.marks + bit
      say(L, s, "warn", format("%.0f", units))
    end
    bit = bit * 2
  end
  if s.left <= 0 then
    event.exhausted(L, s)
  end
  if s.over > 0 and not set(s.marks, OVERAGE) then
    s.marks = s.marks + OVERAGE
    say(L, s, "overage")
  end
end

-- Nothing is left, or a charge was refused. Returns whether that is new.
function event.exhausted(L, s)
  if set(s.marks, EXHAUSTED) then
    return false
  end
  s.marks = s.marks + EXHAUSTED
  say(L, s, "exhausted")
  return true
end

-- There is more to spend than before: what is no longer true may be said again.
function event.rearm(L, s)
  if s.marks == 0 then
    return
  elseif L.limit == NONE then
    s.marks = 0
    return
  end
  local use, total = use_and_total(L, s)
  local marks, bit = 0, FIRST_WARN
  for _, millionths in ipairs(L.warn_at) do
    if set(s.marks, bit) and use >= part_of(millionths, total) then
      marks = marks + bit
    end
    bit = bit * 2
  end
  for _, units in ipairs(L.warn_below) do
    if set(s.marks, bit) and s.left <= units then
      marks = marks + bit
    end
    bit = bit * 2
  end
  if set(s.marks, EXHAUSTED) and s.left <= 0 then
    marks = marks + EXHAUSTED
  end
  if set(s.marks, OVERAGE) and s.over > 0 then
    marks = marks + OVERAGE
  end
  s.marks = marks
end

-- Marks of the same thresholds, where they stand in another list; `bit`, `to`: where the lists begin.
local function moved(marks, list, bit, new, to)
  local result = 0
  for i, threshold in ipairs(list) do
    for j, same in ipairs(new) do
      if same == threshold and set(marks, bit * 2 ^ (i - 1)) then
        result = result + to * 2 ^ (j - 1)
      end
    end
  end
  return result
end

-- The state goes over to another definition, whose figures have been taken already.
function event.convert(old, L, s)
  if s.marks == 0 then
    return
  end
  local warned, behind, to = s.marks, FIRST_WARN * 2 ^ #old.warn_at, FIRST_WARN * 2 ^ #L.warn_at
  s.marks = warned % FIRST_WARN
    + moved(warned, old.warn_at, FIRST_WARN, L.warn_at, FIRST_WARN)
    + moved(warned, old.warn_below, behind, L.warn_below, to)
  if L.limit == NONE or old.limit ~= NONE and L.limit > old.limit then
    event.rearm(L, s)
  end
end
