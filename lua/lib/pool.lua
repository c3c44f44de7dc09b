-- A pool of credits: what one period allows, what was used of it, and what crosses its end.
--
-- State in S[b+1..7]: start and end of the period, anchor, used, drawn, over, carried (signed);
-- S[b+8] is what remains (huge where the limit is unlimited). used = taken from the period's own
-- allowance, drawn = taken from grants, over = covered by no source.

local POOL_FORMAT = "I6I6I6I7I7I7i7"
local POOL_SIZE = 46

local pool = {}

-- What a period that ends with N left hands on: at most `rollover`, and a debt only if it is kept.
local function carry(L, n)
  if n >= 0 then
    return min(L.rollover, n)
  end
  return L.carry_debt and n or 0
end

-- The `carried` of the period after m >= 1 missed boundaries, in O(1): every period after the first
-- went unused, so it adds its whole limit once.
local function closing(L, used, over, carried, m)
  if L.limit == NONE then
    return L.rollover
  end
  local n = max(0, L.limit + max(0, carried) - used) - over - max(0, -carried)
  n = carry(L, n)
  if m > 1 then
    n = carry(L, n + (m - 1) * L.limit)
  end
  return n
end

local function remaining(L, used, over, carried)
  if L.limit == NONE then
    return huge
  end
  return max(0, L.limit + max(0, carried) - used) - over - max(0, -carried)
end

-- Lays out a state in S and says how much would fit now.
local function pool_set(L, b, start, fin, anchor, used, drawn, over, carried)
  local left = remaining(L, used, over, carried)
  S[b + 1], S[b + 2], S[b + 3], S[b + 4] = start, fin, anchor, used
  S[b + 5], S[b + 6], S[b + 7], S[b + 8] = drawn, over, carried, left
  if L.overage == NONE then
    return huge
  end
  return left + L.overage
end

-- Reads the state and brings it to the period that holds `now`, however many were missed.
function pool.load(L, rec, now, b)
  local start, fin, anchor, used, drawn, over, carried = sunpack(L.format, rec, L.offset)
  if now >= fin then
    if L.mode == 3 then
      start, fin, carried = 0, 0, 0
    else
      carried = closing(L, used, over, carried, calendar.missed(L, anchor, fin, now))
      start, fin = calendar.period(L, anchor, now)
    end
    used, drawn, over = 0, 0, 0
  end
  return pool_set(L, b, start, fin, anchor, used, drawn, over, carried)
end

-- The state of a pool that enters a record at `now`.
function pool.fresh(L, now, anchor, b)
  local start, fin = now, NEVER
  if L.mode == 3 then
    start, fin = 0, 0
  elseif L.unit > 0 then
    start, fin = calendar.period(L, anchor, now)
  end
  return pool_set(L, b, start, fin, anchor, 0, 0, 0, 0)
end

-- Charges c: first the period's allowance, then beyond it.
function pool.charge(L, c, now, b)
  if S[b + 2] == 0 then -- closed: the first charge opens the period
    S[b + 1] = now
    local _, fin = calendar.period(L, now, now)
    S[b + 2] = fin
  end
  local room = huge
  if L.limit ~= NONE then
    room = max(0, L.limit + max(0, S[b + 7]) - S[b + 4])
  end
  local own = min(c, room)
  S[b + 4] = S[b + 4] + own
  S[b + 6] = S[b + 6] + c - own
  S[b + 8] = S[b + 8] - c
  pool.guard(L, 0, b)
end

-- Ends the call if charging c would take the counters past what they hold.
function pool.guard(L, c, b)
  if S[b + 4] + S[b + 5] + S[b + 6] + max(0, -S[b + 7]) + c > MAX_COUNTER then
    error("METERD-OVERFLOW " .. L.name, 0)
  end
end

-- Gives back up to c, newest source first. Returns what came back.
function pool.refund(L, c, _, b)
  local from_over = min(c, S[b + 6])
  local from_used = min(c - from_over, S[b + 4])
  S[b + 6] = S[b + 6] - from_over
  S[b + 4] = S[b + 4] - from_used
  S[b + 8] = remaining(L, S[b + 4], S[b + 6], S[b + 7])
  return from_over + from_used
end

-- Sets the use of the running period to exactly n.
function pool.adjust(L, n, now, b)
  if n > 0 and S[b + 2] == 0 then
    pool.charge(L, 0, now, b)
  end
  local own = n
  if L.limit ~= NONE then
    own = min(n, max(0, L.limit + max(0, S[b + 7])))
  end
  S[b + 4], S[b + 5], S[b + 6] = own, 0, n - own
  S[b + 8] = remaining(L, own, n - own, S[b + 7])
end

-- Figures for a reply, from O[o] on: limit, used, remaining, over.
-- Returns the next boundary, NONE where there is none.
function pool.figures(L, _, b, o)
  O[o] = L.limit
  O[o + 1] = S[b + 4] + S[b + 5] + S[b + 6]
  O[o + 2] = S[b + 8] == huge and NONE or S[b + 8]
  O[o + 3] = S[b + 6]
  local fin = S[b + 2]
  return (fin == 0 or fin == NEVER) and NONE or fin
end

-- The first boundary (an instant) at which c fits, NONE if there is none within a century. `carried`
-- grows from boundary to boundary, by one limit each, so the first that suffices is found by division.
function pool.retry_at(L, c, now, b)
  local fin = S[b + 2]
  if fin == NEVER then
    return NONE
  end
  local need = c - L.overage - L.limit -- what has to be carried in
  if fin == 0 or L.mode == 3 then
    return need <= 0 and fin > 0 and fin or NONE
  end
  local carried = closing(L, S[b + 4], S[b + 6], S[b + 7], 1)
  local k = 1
  if carried < need then
    if need > L.rollover or L.limit == 0 then
      return NONE
    end
    k = 1 + ceil((need - carried) / L.limit)
  end
  local at = calendar.later(L, S[b + 3], fin, k)
  return at and at - now <= CENTURY and at or NONE
end

-- The same use under another definition: what was used stays used, the period keeps its start.
function pool.convert(old, L, now, b)
  local start, fin, anchor = S[b + 1], S[b + 2], S[b + 3]
  local same = old.unit == L.unit and old.every == L.every and old.mode == L.mode and old.anchor == L.anchor
  if not (same and old.zone_name == L.zone_name) then
    if fin == 0 then
      if L.mode ~= 3 then
        pool.fresh(L, now, anchor, b)
        start, fin = S[b + 1], S[b + 2]
      end
    else
      fin = NEVER
      if L.unit > 0 then
        start, fin = pool.rebase(L, start, anchor, now)
      end
    end
  end
  return pool_set(L, b, start, fin, anchor, S[b + 4], S[b + 5], S[b + 6], S[b + 7])
end

-- A running period on another grid: it keeps its start and ends at the first boundary after now.
function pool.rebase(L, start, anchor, now)
  local _, fin = calendar.period(L, L.mode == 3 and start or anchor, now)
  return start, fin
end

-- Closes the period at `now` as its end would have, and opens one from now.
function pool.close(L, now, anchor, b)
  local carried = closing(L, S[b + 4], S[b + 6], S[b + 7], 1)
  return pool_set(L, b, now, S[b + 2], anchor, 0, 0, 0, carried)
end

function pool.put(_, b, n)
  for i = 1, 7 do
    N[n + i] = S[b + i]
  end
  return n + 7
end
