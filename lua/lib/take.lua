-- The plain case of one limit in one go: load, charge, pack and figures, where c > 0 fits a running period or
-- what is left of a bucket. What of it the long way needs too stands here, since a script may come to its
-- end with this and without everything behind it.

local SLOTS, POOL, FLAG = 0, 1, 5
local LAYOUT, HEADER = 2, 20 -- of a record: its version, and the bytes before the states
-- Flags of a record. What is in BOOKS a plain charge need not read; LISTED: it is in its partition's index.
local FIRST, VAR, TTL, HOLDS, GRANTS, BOOKS, LISTED, IMPLIED = 1, 2, 4, 8, 16, 32, 64, 128
local POOL_FORMAT, FIXED_FORMAT = "<I6I6I6I7I7I7i7I2", "<I6I5"
local SLIDING_FORMAT, TOKEN_FORMAT, SLOTS_FORMAT = "<I6I5I5", "<I5I5I6", "<I7"
local SIZES = { [0] = 7, 48, 11, 16, 16 } -- of a state, by kind
local LETTERS = { [0] = "l", "p", "f", "s", "t", "g" } -- of a kind, in an answer
local CHARGE, CHECK, REPORT = 1, 2, 3 -- what plain.answer is asked for

local function has(flags, bit)
  return flags % (bit * 2) >= bit
end

local opened = {} -- msgpack that lib/once.lua has unpacked, by its bytes

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

-- The window of a tick, where `window` was charged last.
local function rolled(L, tick, window, used, previous)
  local k = floor(tick / L.period)
  if k == window then
    return window, used, previous
  end
  return k, 0, k == window + 1 and used or 0
end

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

-- The instant at which `units` more will have come back; NONE where no clock reaches it.
local function refilled_at(L, units, fraction, tick)
  local limit = L.limit
  local at = (tick + floor((units * L.period - fraction + limit - 1) / limit)) * L.tick
  return at < -NONE and at or NONE
end

-- What a fraction of a total comes to, in millionths: the least use that reaches it. Exact, for the product is
-- summed in limbs.
local function part_of(millionths, total)
  local low = total % 1000000
  return (total - low) / 1000000 * millionths + ceil(low * millionths / 1000000)
end

-- Marks: what a pool has said in its period. Bits above these two: its thresholds, in their order.
local EXHAUSTED, OVERAGE, FIRST_WARN = 1, 2, 4

-- The use at which a pool that may give `total` in all has something to say that it has not said yet.
local function next_mark(L, marks, total)
  local at, bit = marks % 2 == 0 and total or huge, FIRST_WARN
  for _, millionths in ipairs(L.warn_at) do
    if marks % (bit * 2) < bit then
      at = min(at, part_of(millionths, total))
    end
    bit = bit * 2
  end
  for _, units in ipairs(L.warn_below) do
    if marks % (bit * 2) < bit then
      at = min(at, total - units)
    end
    bit = bit * 2
  end
  return at
end

-- take[kind](limit, record, now, c, applied): `applied` is c, or 0 where it is only asked whether c fits.
-- Returns the state, the figures, and what one more could spend (huge: no bound); nil: not plain.
local take = {}

take[POOL] = function(L, rec, now, c, applied)
  local start, fin, anchor, used, drawn, over, carried, marks = sunpack(POOL_FORMAT, rec, L.offset)
  local limit, left, room = L.limit, NONE, huge
  if now >= fin or drawn + over > 0 or carried < 0 or used + c > MAX_COUNTER then
    return nil
  end
  if limit ~= NONE then
    left = limit + carried - used
    if left < c then
      return nil
    end
    left = left - applied
    if applied > 0 and used + applied >= next_mark(L, marks, limit + carried) then
      return nil
    end
    room = L.overage ~= NONE and left + L.overage or huge
  end
  used = used + applied
  return spack(POOL_FORMAT, start, fin, anchor, used, 0, 0, carried, marks),
    spack(FIGURES, 1, limit, used, left, 0, applied, fin ~= NEVER and fin or NONE, NONE),
    room
end

take[2] = function(L, rec, now, c, applied)
  local start, used = sunpack(FIXED_FORMAT, rec, L.offset)
  local limit, P, t = L.limit, L.period, L.tick
  local ends = (start + P) * t
  if now >= ends or start == NEVER then
    start, used = floor(now / t), 0
    ends = applied > 0 and (start + P) * t or NONE
  end
  local left = limit - used
  if left < c then
    return nil
  end
  used, left = used + applied, left - applied
  return spack(FIXED_FORMAT, start, used), spack(FIGURES, 1, limit, used, left, 0, applied, ends, NONE), left
end

take[3] = function(L, rec, now, c, applied)
  local window, used, previous = sunpack(SLIDING_FORMAT, rec, L.offset)
  local limit, P, t = L.limit, L.period, L.tick
  local tick = floor(now / t)
  local elapsed = tick - window * P
  if elapsed < 0 or elapsed >= P then
    window, used, previous = rolled(L, tick, window, used, previous)
    elapsed = tick - window * P
  end
  local counted = used
  if previous > 0 then
    counted = used + ceil_div(previous * (P - elapsed), P)
  end
  local left = limit - counted
  if left < c then
    return nil
  end
  used, counted, left = used + applied, counted + applied, left - applied
  return spack(SLIDING_FORMAT, window, used, previous),
    spack(FIGURES, 1, limit, counted, left, 0, applied, (window + 1) * P * t, NONE),
    left
end

take[4] = function(L, rec, now, c, applied)
  local spent, fraction, last = sunpack(TOKEN_FORMAT, rec, L.offset)
  local limit, tick = L.limit, floor(now / L.tick)
  spent, fraction = refill(L, tick, spent, fraction, last)
  local left = L.capacity - spent
  if left < c or limit == 0 then
    return nil
  end
  spent, left = spent + applied, left - applied
  local full = spent > 0 and refilled_at(L, spent, fraction, tick) or NONE
  return spack(TOKEN_FORMAT, spent, fraction, tick),
    spack(FIGURES, 1, limit, spent, left, 0, applied, full, NONE),
    left
end
