-- Rate-limit buckets: fixed window, sliding window and token bucket, in integers throughout.
--
-- Time inside a bucket is counted in ticks of t ms (1 ms unless the limit is huge), a period is P of
-- them; t is chosen so that every product stays below 2^53. State in S[b+1..3]; S[b+8] is what
-- remains. Instants that leave a bucket are tick starts, in ms.

-- t for a capacity m (<= 10^12) and a period in ms: ceil(m * per / 2^52), exact. The product needs up
-- to 75 bits, so it is summed in limbs of 2^22, 2^11 and 1.
local function tick_ms(m, per)
  local low = m % 4194304
  local c = low % 2048 * per
  local d = floor(low / 2048) * per + floor(c / 2048)
  local a = floor(m / 4194304) * per + floor(d / 2048)
  local t = floor(a / 1073741824)
  if a % 1073741824 > 0 or d % 2048 > 0 or c % 2048 > 0 then
    t = t + 1
  end
  return max(1, t)
end

-- Smallest integer not below x / y; exact for x < 2^53.
local function ceil_div(x, y)
  return floor((x + y - 1) / y)
end

------------------------------------------------------------------------------------------ fixed window
-- (start tick, count); a closed window has start NEVER and count 0.

local fixed = {}

function fixed.load(L, rec, now, b)
  local start, count = sunpack("<I6I5", rec, L.offset)
  if floor(now / L.tick) >= start + L.period then
    start, count = NEVER, 0
  end
  S[b + 1], S[b + 2] = start, count
  S[b + 8] = max(0, L.limit - count)
  return S[b + 8]
end

function fixed.fresh(L, _, _, b)
  S[b + 1], S[b + 2], S[b + 8] = NEVER, 0, L.limit
  return L.limit
end

function fixed.charge(L, c, now, b)
  if S[b + 1] == NEVER then
    S[b + 1] = floor(now / L.tick)
  end
  S[b + 2] = S[b + 2] + c
  S[b + 8] = max(0, L.limit - S[b + 2])
end

function fixed.refund(L, c, _, b)
  local back = min(c, S[b + 2])
  S[b + 2] = S[b + 2] - back
  S[b + 8] = max(0, L.limit - S[b + 2])
  return back
end

function fixed.adjust(L, n, now, b)
  if n > 0 and S[b + 1] == NEVER then
    S[b + 1] = floor(now / L.tick)
  end
  S[b + 2], S[b + 8] = n, L.limit - n
end

function fixed.figures(L, _, b, o)
  O[o], O[o + 1], O[o + 2], O[o + 3] = L.limit, S[b + 2], S[b + 8], 0
  return S[b + 1] == NEVER and NONE or (S[b + 1] + L.period) * L.tick
end

function fixed.retry_at(L, c, _, b)
  if c > L.limit then
    return NONE
  end
  return (S[b + 1] + L.period) * L.tick
end

-- A window keeps its count and its start.
function fixed.convert(old, L, now, b)
  local start, count = S[b + 1], S[b + 2]
  if start ~= NEVER then
    if old.tick ~= L.tick then
      start = floor(start * old.tick / L.tick)
    end
    if floor(now / L.tick) >= start + L.period then
      start, count = NEVER, 0
    end
  end
  S[b + 1], S[b + 2], S[b + 8] = start, count, max(0, L.limit - count)
end

function fixed.put(_, b, n)
  N[n + 1], N[n + 2] = S[b + 1], S[b + 2]
  return n + 2
end

---------------------------------------------------------------------------------------- sliding window
-- (index of the current window, its count, the previous window's count): the previous window weighs by
-- the part of it that the sliding period still covers.

local sliding = {}

local function weighted(L, now, b)
  local e = floor(now / L.tick) % L.period
  return S[b + 2] + ceil_div(S[b + 3] * (L.period - e), L.period)
end

function sliding.load(L, rec, now, b)
  local index, current, previous = sunpack("<I6I5I5", rec, L.offset)
  local tick = floor(now / L.tick)
  local k = floor(tick / L.period)
  if k ~= index then
    previous = k == index + 1 and current or 0
    current = 0
  end
  S[b + 1], S[b + 2], S[b + 3] = k, current, previous
  local left = L.limit - current
  if previous > 0 then
    left = left - ceil_div(previous * (L.period - tick % L.period), L.period)
  end
  if left < 0 then
    left = 0
  end
  S[b + 8] = left
  return left
end

function sliding.fresh(L, now, _, b)
  S[b + 1], S[b + 2], S[b + 3], S[b + 8] = floor(floor(now / L.tick) / L.period), 0, 0, L.limit
  return L.limit
end

function sliding.charge(_, c, _, b)
  S[b + 2] = S[b + 2] + c
  S[b + 8] = S[b + 8] - c
end

function sliding.refund(L, c, now, b)
  local back = min(c, S[b + 2])
  S[b + 2] = S[b + 2] - back
  S[b + 8] = max(0, L.limit - weighted(L, now, b))
  return back
end

function sliding.adjust(L, n, _, b)
  S[b + 2], S[b + 3], S[b + 8] = n, 0, L.limit - n
end

function sliding.figures(L, now, b, o)
  O[o], O[o + 1], O[o + 2], O[o + 3] = L.limit, weighted(L, now, b), S[b + 8], 0
  return (S[b + 1] + 1) * L.period * L.tick
end

-- The weight falls by one unit at exact ticks, so the first tick at which c fits comes from a
-- division: within this window, else within the next one (where this window's count is what weighs),
-- else at the start of the one after it.
function sliding.retry_at(L, c, _, b)
  local k, current, previous, P = S[b + 1], S[b + 2], S[b + 3], L.period
  if c > L.limit then
    return NONE
  end
  local room = L.limit - current - c
  if room >= 0 then
    local covered = floor(room * P / previous) -- how much of the previous window may still count
    if covered > 0 then
      return ((k + 1) * P - covered) * L.tick
    end
    if current == 0 then
      return (k + 1) * P * L.tick
    end
  end
  local covered = min(P, floor((L.limit - c) * P / current))
  return ((k + 2) * P - covered) * L.tick
end

function sliding.convert(old, L, now, b)
  if old.per ~= L.per or old.tick ~= L.tick then
    sliding.fresh(L, now, 0, b)
  else
    S[b + 8] = max(0, L.limit - weighted(L, now, b))
  end
end

function sliding.put(_, b, n)
  N[n + 1], N[n + 2], N[n + 3] = S[b + 1], S[b + 2], S[b + 3]
  return n + 3
end

------------------------------------------------------------------------------------------ token bucket
-- (spent, fraction, tick of the last look): `limit` tokens come back per P ticks, the remainder of
-- the division is carried exactly.

local token = {}

local function refill(L, tick, spent, fraction, last)
  if tick > last and spent > 0 then
    local gained = (tick - last) * L.limit
    if gained >= spent * L.period then -- beyond this the sum could pass 2^53
      return 0, 0
    end
    gained = gained + fraction
    spent = spent - floor(gained / L.period)
    fraction = gained % L.period
  end
  if spent <= 0 then
    return 0, 0
  end
  return spent, fraction
end

function token.load(L, rec, now, b)
  local spent, fraction, last = sunpack("<I5I5I6", rec, L.offset)
  local tick = floor(now / L.tick)
  spent, fraction = refill(L, tick, spent, fraction, last)
  S[b + 1], S[b + 2], S[b + 3] = spent, fraction, tick
  local left = L.capacity - spent
  if left < 0 then
    left = 0
  end
  S[b + 8] = left
  return left
end

function token.fresh(L, now, _, b)
  S[b + 1], S[b + 2], S[b + 3], S[b + 8] = 0, 0, floor(now / L.tick), L.capacity
  return L.capacity
end

function token.charge(_, c, _, b)
  S[b + 1] = S[b + 1] + c
  S[b + 8] = S[b + 8] - c
end

function token.refund(L, c, _, b)
  local back = min(c, S[b + 1])
  S[b + 1] = S[b + 1] - back
  if S[b + 1] == 0 then
    S[b + 2] = 0
  end
  S[b + 8] = max(0, L.capacity - S[b + 1])
  return back
end

function token.adjust(L, n, _, b)
  S[b + 1], S[b + 2], S[b + 8] = n, 0, L.capacity - n
end

-- The instant at which `units` more will have come back; at most 2^53 ms, which no clock reaches.
local function refilled_at(L, units, b)
  return min(-NONE, (S[b + 3] + ceil_div(units * L.period - S[b + 2], L.limit)) * L.tick)
end

function token.figures(L, _, b, o)
  O[o], O[o + 1], O[o + 2], O[o + 3] = L.limit, S[b + 1], S[b + 8], 0
  if S[b + 1] == 0 or L.limit == 0 then
    return NONE
  end
  return refilled_at(L, S[b + 1], b)
end

function token.retry_at(L, c, _, b)
  if c > L.capacity or L.limit == 0 then
    return NONE
  end
  return refilled_at(L, S[b + 1] + c - L.capacity, b)
end

function token.convert(old, L, now, b)
  S[b + 1] = min(S[b + 1], L.capacity)
  if S[b + 1] == 0 or old.period ~= L.period or old.tick ~= L.tick then
    S[b + 2] = 0
  end
  S[b + 3], S[b + 8] = floor(now / L.tick), L.capacity - S[b + 1]
end

function token.put(_, b, n)
  N[n + 1], N[n + 2], N[n + 3] = S[b + 1], S[b + 2], S[b + 3]
  return n + 3
end
