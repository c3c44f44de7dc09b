-- Rate-limit buckets: fixed window, sliding window and token bucket, in integers throughout.
--
-- Time inside a bucket is counted in ticks of t ms (1 ms unless the limit is huge), a period is P of
-- them; t is chosen so that every product stays below 2^53. Instants that leave a bucket are tick
-- starts, in ms.
-- @gives fixed sliding token

------------------------------------------------------------------------------------------ fixed window
-- `start` (tick) and `used`; a closed window has start NEVER and used 0.

local fixed = {}

local function fixed_left(L, s)
  local left = L.limit - s.used
  if left < 0 then
    left = 0
  end
  s.left = left
  return left
end

function fixed.load(L, rec, now, s)
  s.start, s.used = sunpack(FIXED_FORMAT, rec, L.offset)
  if floor(now / L.tick) >= s.start + L.period then
    s.start, s.used = NEVER, 0
  end
  return fixed_left(L, s)
end

function fixed.fresh(L, _, _, s)
  s.start, s.used = NEVER, 0
  return fixed_left(L, s)
end

function fixed.charge(L, c, now, s)
  if s.start == NEVER then
    s.start = floor(now / L.tick)
  end
  s.used, s.left = s.used + c, s.left - c
end

function fixed.refund(L, c, _, s)
  local back = min(c, s.used)
  s.used = s.used - back
  fixed_left(L, s)
  return back
end

-- A hold knows its window by where it began, in ms.
function fixed.mark(L, _, s)
  return s.start * L.tick
end

function fixed.give_back(L, part, c, keep, now, s)
  if s.start ~= NEVER and floor(part.mark / L.tick) == s.start then
    return fixed.refund(L, c - keep, now, s)
  end
  return 0
end

-- As pool.marked.
function fixed.marked(L, at, _, s)
  return s.start <= floor(at / L.tick) and s.start * L.tick or nil
end

function fixed.adjust(L, n, now, s)
  if n > 0 and s.start == NEVER then
    s.start = floor(now / L.tick)
  end
  s.used = n
  fixed_left(L, s)
end

function fixed.figures(L, _, s)
  local ends = NONE
  if s.start ~= NEVER then
    ends = (s.start + L.period) * L.tick
  end
  return L.limit, s.used, s.left, 0, ends
end

function fixed.retry_at(L, c, _, s)
  if c > L.limit then
    return NONE
  end
  return (s.start + L.period) * L.tick
end

-- A window keeps its use and its start.
function fixed.convert(old, L, now, s)
  if s.start ~= NEVER then
    if old.tick ~= L.tick then
      s.start = floor(s.start * old.tick / L.tick)
    end
    if floor(now / L.tick) >= s.start + L.period then
      s.start, s.used = NEVER, 0
    end
  end
  fixed_left(L, s)
end

function fixed.pack(_, s)
  return spack(FIXED_FORMAT, s.start, s.used)
end

---------------------------------------------------------------------------------------- sliding window
-- `window`: index of the current one, `used`: what was used in it, `previous`: in the one before, which
-- weighs by the part of it that the sliding period still covers.

local sliding = {}

-- What counts now.
local function weighted(L, now, s)
  local previous = s.previous
  if previous == 0 then
    return s.used
  end
  local P = L.period
  return s.used + ceil_div(previous * (P - floor(now / L.tick) % P), P)
end

local function sliding_left(L, now, s)
  local left = L.limit - weighted(L, now, s)
  if left < 0 then
    left = 0
  end
  s.left = left
  return left
end

function sliding.load(L, rec, now, s)
  local window, used, previous = sunpack(SLIDING_FORMAT, rec, L.offset)
  s.window, s.used, s.previous = rolled(L, floor(now / L.tick), window, used, previous)
  return sliding_left(L, now, s)
end

function sliding.fresh(L, now, _, s)
  s.window, s.used, s.previous = floor(floor(now / L.tick) / L.period), 0, 0
  s.left = L.limit
  return s.left
end

function sliding.charge(_, c, _, s)
  s.used, s.left = s.used + c, s.left - c
end

function sliding.refund(L, c, now, s)
  local back = min(c, s.used)
  s.used = s.used - back
  sliding_left(L, now, s)
  return back
end

function sliding.mark(_, _, s)
  return s.window
end

-- To the window that was charged, be it the current or the previous one.
function sliding.give_back(L, part, c, keep, now, s)
  local back = 0
  if s.window == part.mark then
    back = min(c - keep, s.used)
    s.used = s.used - back
  elseif s.window == part.mark + 1 then
    back = min(c - keep, s.previous)
    s.previous = s.previous - back
  end
  sliding_left(L, now, s)
  return back
end

-- As pool.marked; `ends`: when the window was to end, which says whether windows still are what they were.
function sliding.marked(L, at, ends)
  local window = floor(floor(at / L.tick) / L.period)
  return (window + 1) * L.period * L.tick == ends and window or nil
end

function sliding.adjust(L, n, now, s)
  s.used, s.previous = n, 0
  sliding_left(L, now, s)
end

function sliding.figures(L, now, s)
  return L.limit, weighted(L, now, s), s.left, 0, (s.window + 1) * L.period * L.tick
end

-- The weight falls by one unit at exact ticks, so the first tick at which c fits comes from a
-- division: within this window, else within the next one (where this window's use is what weighs),
-- else at the start of the one after it.
function sliding.retry_at(L, c, _, s)
  local k, current, P = s.window, s.used, L.period
  if c > L.limit then
    return NONE
  end
  local room = L.limit - current - c
  if room >= 0 then
    local covered = floor(room * P / s.previous) -- how much of the previous window may still count
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

function sliding.convert(old, L, now, s)
  if old.per ~= L.per or old.tick ~= L.tick then
    sliding.fresh(L, now, 0, s)
  else
    sliding_left(L, now, s)
  end
end

function sliding.pack(_, s)
  return spack(SLIDING_FORMAT, s.window, s.used, s.previous)
end

------------------------------------------------------------------------------------------ token bucket
-- `used`: tokens spent and not yet back, `fraction`, `tick` of the last look: `limit` tokens come back
-- per P ticks, the remainder of the division is carried exactly.

local token = {}

local function token_left(L, s)
  local left = L.capacity - s.used
  if left < 0 then
    left = 0
  end
  s.left = left
  return left
end

function token.load(L, rec, now, s)
  local spent, fraction, last = sunpack(TOKEN_FORMAT, rec, L.offset)
  s.tick = floor(now / L.tick)
  s.used, s.fraction = refill(L, s.tick, spent, fraction, last)
  return token_left(L, s)
end

function token.fresh(L, now, _, s)
  s.used, s.fraction, s.tick = 0, 0, floor(now / L.tick)
  return token_left(L, s)
end

function token.charge(_, c, _, s)
  s.used, s.left = s.used + c, s.left - c
end

function token.refund(L, c, _, s)
  local back = min(c, s.used)
  s.used = s.used - back
  if s.used == 0 then
    s.fraction = 0
  end
  token_left(L, s)
  return back
end

function token.mark(_, now)
  return now
end

-- What has come back since the charge may have been the hold's own units, so as many are taken off.
function token.give_back(L, part, c, keep, _, s)
  local ticks, P = s.tick - floor(part.mark / L.tick), L.period
  local refilled = min(c, floor(ticks / P) * L.limit + ceil_div(ticks % P * L.limit, P))
  return token.refund(L, max(0, c - refilled) - max(0, keep - refilled), 0, s)
end

function token.marked(_, at)
  return at
end

function token.adjust(L, n, _, s)
  s.used, s.fraction = n, 0
  token_left(L, s)
end

function token.figures(L, _, s)
  local full = NONE
  if s.used > 0 and L.limit > 0 then
    full = refilled_at(L, s.used, s.fraction, s.tick)
  end
  return L.limit, s.used, s.left, 0, full
end

function token.retry_at(L, c, _, s)
  if c > L.capacity or L.limit == 0 then
    return NONE
  end
  return refilled_at(L, s.used + c - L.capacity, s.fraction, s.tick)
end

function token.convert(old, L, now, s)
  s.used = min(s.used, L.capacity)
  if s.used == 0 or old.period ~= L.period or old.tick ~= L.tick then
    s.fraction = 0
  end
  s.tick = floor(now / L.tick)
  token_left(L, s)
end

function token.pack(_, s)
  return spack(TOKEN_FORMAT, s.used, s.fraction, s.tick)
end
