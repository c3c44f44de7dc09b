-- Civil-calendar arithmetic and the grids of period boundaries. Pure: numbers in, numbers out.
--
-- A *wall* value is what a clock on the wall shows, counted in ms as if it were UTC. A zone is a
-- packed list of (utc ms as 6 bytes, offset in s as 4 bytes) in force from that instant on; the
-- first entry stands for everything before the second. Past `horizon` the list is not known to be
-- complete, and the call ends with a signal on which the client brings a longer list.
--
-- Day and month counts follow the proleptic Gregorian algorithms that H. Hinnant describes in
-- "chrono-compatible low-level date algorithms".
-- @gives calendar DAY CENTURY

local DAY = 86400000
local HOUR = 3600000
local CENTURY = 100 * 366 * DAY

local calendar = {}

-- Days since 1970-01-01 of a civil date; month 1..12.
local function days_from_civil(y, m, d)
  if m <= 2 then
    y = y - 1
  end
  local era = floor(y / 400)
  local yoe = y - era * 400
  local doy = floor((153 * (m + (m > 2 and -3 or 9)) + 2) / 5) + d - 1
  local doe = yoe * 365 + floor(yoe / 4) - floor(yoe / 100) + doy
  return era * 146097 + doe - 719468
end

-- Year, month (1..12) and day of a count of days since 1970-01-01.
local function civil_from_days(z)
  z = z + 719468
  local era = floor(z / 146097)
  local doe = z - era * 146097
  local yoe = floor((doe - floor(doe / 1460) + floor(doe / 36524) - floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + floor(yoe / 4) - floor(yoe / 100))
  local mp = floor((5 * doy + 2) / 153)
  local d = doy - floor((153 * mp + 2) / 5) + 1
  local m = mp + (mp < 10 and 3 or -9)
  return yoe + era * 400 + (m <= 2 and 1 or 0), m, d
end

-- Index (from 0) of the zone's entry in force at utc instant t.
local function zone_entry(list, t)
  local low, high = 0, #list / 10 - 1
  while low < high do
    local mid = ceil((low + high) / 2)
    if sunpack("<I6", list, mid * 10 + 1) <= t then
      low = mid
    else
      high = mid - 1
    end
  end
  return low
end

local function need_horizon(zone, t)
  error("METERD-HORIZON " .. hex(zone.policy) .. " " .. format("%.0f", t), 0)
end

-- Offset from UTC in ms at utc instant t.
local function offset_at(zone, t)
  if not zone then
    return 0
  end
  if t > zone.horizon then
    need_horizon(zone, t)
  end
  local _, offset = sunpack("<I6i4", zone.list, zone_entry(zone.list, t) * 10 + 1)
  return offset * 1000
end

-- The first utc instant whose wall clock shows `wall` or later: a skipped wall time becomes the
-- instant of the jump, one that occurs twice means the first.
local function to_utc(zone, wall)
  if not zone then
    return wall
  end
  local list = zone.list
  local last = #list / 10 - 1
  -- No offset reaches a day, so the entry in force a day earlier cannot be too late.
  local i = zone_entry(list, wall - DAY)
  while true do
    local from, offset = sunpack("<I6i4", list, i * 10 + 1)
    local t = wall - offset * 1000
    if i == last or t < sunpack("<I6", list, i * 10 + 11) then
      if i > 0 and t < from then
        t = from
      end
      if t > zone.horizon then
        need_horizon(zone, t)
      end
      return t
    end
    i = i + 1
  end
end

-- A pool's grid is given by its limit `L`: `unit` 1 elapsed ms, 2 days, 3 months; `every` units long;
-- `mode` says from where it counts: 0 the record's anchor, 1 a wall time, 2 an instant, 3 the start of
-- the running period (first use), 4 the wall clock's hours.

-- The wall time that a grid of days or months counts from, and the instant if it is one.
local function civil_anchor(L, anchor)
  if L.mode == 1 then
    return L.anchor, nil
  end
  if L.mode == 2 then
    anchor = L.anchor
  end
  return anchor + offset_at(L.zone, anchor), anchor
end

-- Boundary n (any integer) of a grid of days or months, counted from its anchor and never chained.
-- `origin`: the instant that the grid was made from, which is boundary 0 even where its wall time
-- occurs twice; nil where it was made from a wall time.
local function civil_boundary(L, wall, origin, n)
  if n == 0 and origin then
    return origin
  end
  if L.unit == 2 then
    return to_utc(L.zone, wall + n * L.every * DAY)
  end
  local days = floor(wall / DAY)
  local y, m, d = civil_from_days(days)
  local months = y * 12 + m - 1 + n * L.every
  y = floor(months / 12)
  m = months % 12 + 1
  local first = days_from_civil(y, m, 1)
  local length = (m == 12 and days_from_civil(y + 1, 1, 1) or days_from_civil(y, m + 1, 1)) - first
  if d > length then
    d = length
  end
  return to_utc(L.zone, (first + d - 1) * DAY + wall % DAY)
end

-- The largest n whose boundary is not after t.
local function civil_index(L, wall, origin, t)
  local here = t + offset_at(L.zone, t)
  local n
  if L.unit == 2 then
    n = floor((here - wall) / (L.every * DAY))
  else
    local y, m = civil_from_days(floor(here / DAY))
    local y0, m0 = civil_from_days(floor(wall / DAY))
    n = floor(((y - y0) * 12 + m - m0) / L.every)
  end
  while civil_boundary(L, wall, origin, n) > t do
    n = n - 1
  end
  while civil_boundary(L, wall, origin, n + 1) <= t do
    n = n + 1
  end
  return n
end

-- Start and end of the period that holds t. Not for grids that never end (unit 0).
function calendar.period(L, anchor, t)
  if L.mode == 4 then
    local start = t - (t + offset_at(L.zone, t)) % HOUR
    return start, start + HOUR
  end
  if L.unit == 1 then
    local base = L.mode == 2 and L.anchor or anchor
    local start = t - (t - base) % L.every
    return start, start + L.every
  end
  local wall, origin = civil_anchor(L, anchor)
  local n = civil_index(L, wall, origin, t)
  return civil_boundary(L, wall, origin, n), civil_boundary(L, wall, origin, n + 1)
end

-- How many boundaries lie in [first, t], where `first` is one and first <= t. A day that a zone
-- skipped makes two boundaries of one instant; both count.
function calendar.missed(L, anchor, first, t)
  if L.mode == 4 then
    return floor((t - first) / HOUR) + 1
  end
  if L.unit == 1 then
    return floor((t - first) / L.every) + 1
  end
  local wall, origin = civil_anchor(L, anchor)
  return civil_index(L, wall, origin, t) - civil_index(L, wall, origin, first - 1)
end

-- The boundary k - 1 steps after the boundary `first`.
-- nil if that is more than a century away: never, for whoever waits.
function calendar.later(L, anchor, first, k)
  if k == 1 then
    return first
  end
  local shortest = L.unit == 1 and L.every or L.every * (L.unit == 2 and DAY or 28 * DAY)
  if (k - 1) * shortest - 2 * DAY > CENTURY then
    return nil
  end
  if L.mode == 4 then
    return first + (k - 1) * HOUR
  end
  if L.unit == 1 then
    return first + (k - 1) * L.every
  end
  local wall, origin = civil_anchor(L, anchor)
  return civil_boundary(L, wall, origin, civil_index(L, wall, origin, first - 1) + k)
end
