-- A pool of credits: what one period allows, what was used of it, and what crosses its end.
--
-- State: start and end of the period, anchor, used (taken from the period's own allowance), drawn (taken
-- from grants), over (covered by no source), carried (signed, brought in), marks (see event.lua).
--
-- A load that finds the period over leaves its figures in s.ended, if anybody may want them: whoever stores the new
-- state has to tell of them (bill.lua).
-- @gives pool

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
local function closing(L, s, m)
  if L.limit == NONE then
    return L.rollover
  end
  local n = max(0, L.limit + max(0, s.carried) - s.used) - s.over - max(0, -s.carried)
  n = carry(L, n)
  if m > 1 then
    n = carry(L, n + (m - 1) * L.limit)
  end
  return n
end

-- Sets what is left and returns how much would fit.
local function measure(L, s)
  local limit, carried, left = L.limit, s.carried, huge
  if limit ~= NONE then
    if carried > 0 then
      limit = limit + carried
    end
    left = limit - s.used
    if left < 0 then
      left = 0
    end
    left = left - s.over
    if carried < 0 then
      left = left + carried
    end
    if s.grants then
      left = left + s.granted
    end
  end
  s.left = left
  if L.overage == NONE then
    return huge
  end
  return left + L.overage
end

-- The figures of a period that ends with what is in hand.
local function snapshot(L, s, fin)
  if s.fin == 0 or s.used + s.drawn + s.over == 0 and L.bill == 0 then
    return false
  end
  local granted = s.grants
  s.grants = nil -- what they have left is not the period's
  measure(L, s)
  s.grants = granted
  -- `bound`: when it was to end.
  return { start = s.start, fin = fin, bound = s.fin, use = s.used + s.drawn + s.over, over = s.over, left = s.left }
end

-- Reads the state and brings it to the period that holds `now`, however many were missed.
function pool.load(L, rec, now, s)
  s.start, s.fin, s.anchor, s.used, s.drawn, s.over, s.carried, s.marks = sunpack(POOL_FORMAT, rec, L.offset)
  s.ended, s.fired, s.opened = false, false, false
  if now >= s.fin then
    s.ended = snapshot(L, s, s.fin)
    if L.mode == 3 then
      s.start, s.fin, s.carried = 0, 0, 0
    else
      s.carried = closing(L, s, calendar.missed(L, s.anchor, s.fin, now))
      s.start, s.fin = calendar.period(L, s.anchor, now)
    end
    s.used, s.drawn, s.over, s.marks = 0, 0, 0, 0
  end
  return measure(L, s)
end

-- The state of a pool that enters a record at `now`.
function pool.fresh(L, now, anchor, s)
  s.start, s.fin, s.anchor = now, NEVER, anchor
  s.used, s.drawn, s.over, s.carried, s.marks = 0, 0, 0, 0, 0
  s.ended, s.fired, s.opened = false, false, false
  if L.mode == 3 then
    s.start, s.fin = 0, 0
  elseif L.unit > 0 then
    s.start, s.fin = calendar.period(L, anchor, now)
  end
  return measure(L, s)
end

-- Ends the call if charging c more would take the counters past what they hold.
function pool.guard(L, c, s)
  if s.used + s.drawn + s.over + max(0, -s.carried) + c > MAX_COUNTER then
    error("METERD-OVERFLOW " .. L.name, 0)
  end
end

-- Charges c: the period's allowance and live grants, in burn order, then beyond them.
function pool.charge(L, c, now, s)
  if s.fin == 0 then -- closed: the first charge opens the period
    s.start = now
    local _, fin = calendar.period(L, now, now)
    s.fin, s.opened = fin, true
  end
  local room, drawn, own = huge, 0
  if L.limit ~= NONE then
    room = max(0, L.limit + max(0, s.carried) - s.used)
  end
  if s.grants then
    own, drawn, s.beyond = grants.burn(c, room, s)
  else
    own = min(c, room)
    s.beyond = c - own
  end
  s.used, s.drawn, s.over, s.left = s.used + own, s.drawn + drawn, s.over + s.beyond, s.left - c
  pool.guard(L, 0, s)
end

-- Gives back up to c, newest source first. Returns what came back.
function pool.refund(L, c, _, s)
  local from_over = min(c, s.over)
  local from_grants = s.grants and grants.refund(c - from_over, s) or 0
  local from_used = min(c - from_over - from_grants, s.used)
  s.over, s.used = s.over - from_over, s.used - from_used
  measure(L, s)
  return from_over + from_grants + from_used
end

-- Which period was charged.
function pool.mark(_, _, s)
  return s.start
end

-- Gives back what a hold does not keep (`keep` of its c units, `over` of which went over) if its period
-- still runs. Where grants were among its sources, `drawn` is what goes back to them. Returns what came back
-- here: not what went to grants.
function pool.give_back(L, part, c, keep, _, s, drawn)
  if s.fin == 0 or s.start ~= part.mark then
    return 0
  end
  local from_over = min(c - keep, part.over, s.over)
  -- What others gave back of what had gone over comes out of the allowance instead.
  local from_used = min(c - keep - from_over - (drawn or 0), s.used)
  s.over, s.used = s.over - from_over, s.used - from_used
  s.drawn = s.drawn - min(drawn or 0, s.drawn)
  measure(L, s)
  return from_over + from_used
end

-- The mark of what was charged at an earlier instant, nil if that period is over: the running one is it, if it
-- had begun by then.
function pool.marked(_, at, _, s)
  return s.fin > 0 and s.start <= at and s.start or nil
end

-- Sets the use of the running period to exactly n.
function pool.adjust(L, n, now, s)
  if n > 0 and s.fin == 0 then
    pool.charge(L, 0, now, s)
  end
  local own = n
  if L.limit ~= NONE then
    own = min(n, max(0, L.limit + max(0, s.carried)))
  end
  s.used, s.drawn, s.over = own, 0, n - own
  measure(L, s)
end

-- Figures for a reply: limit, used, left, over, next boundary; NONE for what there is not.
function pool.figures(L, _, s)
  local left, fin = s.left, s.fin
  if left == huge then
    left = NONE
  end
  if fin == 0 or fin == NEVER then
    fin = NONE
  end
  return L.limit, s.used + s.drawn + s.over, left, s.over, fin
end

-- The first boundary (an instant) at which c fits, NONE if there is none within a century. `carried`
-- grows from boundary to boundary, by one limit each, so the first that suffices is found by division.
local function first_boundary(L, c, now, s)
  local fin = s.fin
  if fin == NEVER then
    return NONE
  end
  local limit = L.renewed or L.limit -- from the next period on
  local need = c - L.overage - limit -- what has to be carried in
  if fin == 0 or L.mode == 3 then
    return need <= 0 and fin > 0 and fin or NONE
  end
  local carried = closing(L, s, 1)
  local k = 1
  if carried < need then
    if need > L.rollover or limit == 0 then
      return NONE
    end
    k = 1 + ceil((need - carried) / limit)
  end
  local at = calendar.later(L, s.anchor, fin, k)
  return at and at - now <= CENTURY and at or NONE
end

function pool.retry_at(L, c, now, s)
  if not s.grants then
    return first_boundary(L, c, now, s)
  end
  return grants.retry_at(c, s, function(need)
    return first_boundary(L, need, now, s)
  end)
end

-- The same use under another definition: what was used stays used, the period keeps its start.
function pool.convert(old, L, now, s)
  local same = old.unit == L.unit and old.every == L.every and old.mode == L.mode and old.anchor == L.anchor
  if not (same and old.zone_name == L.zone_name) then
    if s.fin == 0 then
      if L.mode ~= 3 then
        pool.fresh(L, now, s.anchor, s)
      end
    else -- a running period ends at the first boundary of the new grid
      s.fin = NEVER
      if L.unit > 0 then
        local _, fin = calendar.period(L, L.mode == 3 and s.start or s.anchor, now)
        s.fin = fin
      end
    end
  end
  return measure(L, s)
end

-- The marks of a state that has gone over to another definition.
function pool.remark(old, L, s)
  measure(L, s)
  event.convert(old, L, s)
end

-- There is more to spend of a record's pool than before: what it said may be said again. `now`: an instant to which
-- the record has been brought.
function pool.rearm(level, name, now)
  local L, s = level.parsed.names[name], new_hand()
  if L.kind == POOL then
    L = level.effective and level.effective[L.index] or L
    grants.arm(level, L, now, s)
    L:load(level.rec, now, s)
    event.rearm(L, s)
    level.rec = sub(level.rec, 1, L.offset - 1) .. L:pack(s) .. sub(level.rec, L.offset + L.size)
  end
end

-- Closes the period at `now` as its end would have, and opens one from now.
function pool.close(L, now, anchor, s)
  s.ended = snapshot(L, s, now)
  s.carried = closing(L, s, 1)
  s.start, s.anchor = now, anchor
  s.used, s.drawn, s.over, s.marks = 0, 0, 0, 0
  return measure(L, s)
end

-- A pool goes: its period ends now. Returns the figures of it, if anybody may want them.
function pool.dropped(L, now, s)
  return snapshot(L, s, now)
end

function pool.pack(_, s)
  return spack(POOL_FORMAT, s.start, s.fin, s.anchor, s.used, s.drawn, s.over, s.carried, s.marks)
end
