-- Changes of plans: how a pool goes on under another plan, limits that moved only in proportion to the time
-- left, and changes that wait for their instant.
--
-- A limit that was moved in proportion stands in the record as what it differs from its plans' by changes of each
-- group, r = {pool = {g = {group = difference}, e = end of the period}}: with that period it ends. A change that
-- waits, at most one for a group: p = {group = {a = at, i = plan (nil: the group's plan goes), h = definition of a
-- private one, c = change, n = anchor}}. Only a client knows what plans add up to, so a script that finds a change due
-- answers what is due, and is called again with a step for each: which policy the record becomes.
-- @gives change

local MONTH = 2629746000 -- a twelfth of a year in ms: only to tell which of two intervals is the longer one

local change = {}

-- The changes that are due at `now`, in the order of time, then of their groups' names; nil if none is.
function change.due(var, now)
  local due
  for group, waiting in pairs(var and var.p or {}) do
    if waiting.a <= now then
      due = due or {}
      local k = #due + 1
      while k > 1 and (due[k - 1].at > waiting.a or due[k - 1].at == waiting.a and due[k - 1].group > group) do
        due[k] = due[k - 1]
        k = k - 1
      end
      due[k] = { group = group, at = waiting.a, waiting = waiting }
    end
  end
  return due
end

-- What a script answers of the changes of level i that are due.
function change.row(i, level, due)
  local listed = {}
  for k, one in ipairs(due) do
    listed[k] = { one.group, one.at, one.waiting.i or "", one.waiting.h or "" }
  end
  return { i, level.fp, level.rev, listed }
end

-- Takes the steps that the caller offers to a record laid out by `fp`: fills `due` with them, and returns the
-- name of the policy that they lead to, and what policies are needed; nil if a step is missing.
function change.steps(due, offers, fp, policies)
  local missing = ""
  for _, one in ipairs(due) do
    local offer = offers and offers[fp .. one.group]
    if not offer or offer.at ~= one.at then
      return nil
    end
    one.to, one.pools, fp = policy.get(offer.to, policies), offer.pools, offer.to
    missing = missing .. (one.to and "" or offer.to)
  end
  return fp, missing
end

-- All that wait, for `usage`: {group, at, plan, change} each.
function change.list(var)
  local rows
  for group, waiting in pairs(var and var.p or {}) do
    rows = rows or {}
    rows[#rows + 1] = { group, waiting.a, waiting.i or "", waiting.c }
  end
  return rows
end

-- The first instant up to now at which a period ends whose limit was moved in proportion, or NEVER.
function change.lapse(var, now)
  local first = NEVER
  for _, share in pairs(var and var.r or {}) do
    if share.e <= now and share.e < first then
      first = share.e
    end
  end
  return first
end

-- floor(10000 * part / whole) for 0 <= part <= whole < 2^49, digit by digit, so that no product is inexact.
local function basis_points(part, whole)
  local points = 0
  for _ = 1, 4 do
    local rest = part * 10 % whole
    points, part = points * 10 + (part * 10 - rest) / whole, rest
  end
  return points
end

-- sign(gap) * floor(|gap| * points / 10000), exact up to 10^15.
local function portion(gap, points)
  local size = max(gap, -gap)
  local rest = size % 10000
  local moved = (size - rest) / 10000 * points + floor(rest * points / 10000)
  return gap < 0 and -moved or moved
end

-- The group of the first name that holds something of a limit back.
local function holding_back(groups)
  local first
  for group, differs in pairs(groups) do
    if differs < 0 and (not first or group < first) then
      first = group
    end
  end
  return first
end

-- What a pool's limit differs from its plans' after theirs went from `before` to `limit`: as an entry of r, or
-- nil. `share`: what it differed by; `s`: its period as it is now; `how`, `group`: by which change; without, the
-- plans have another definition.
function change.share(before, limit, share, how, group, s, now)
  if limit == NONE or before == NONE or s.fin == 0 or s.fin == NEVER then
    return nil
  end
  local gap, groups = limit - before, {}
  for other, differs in pairs(share and share.e > now and share.g or {}) do
    groups[other] = differs
  end
  if how == "prorate" then
    groups[group] = (groups[group] or 0) + portion(gap, basis_points(s.fin - now, s.fin - s.start)) - gap
  elseif how and gap ~= 0 then
    groups[group] = max(0, groups[group] or 0) -- the plan's limit counts in full
  elseif not how then
    -- Where the limit falls, what was held back of it goes first: the limit in force stays while it can.
    local first = holding_back(groups)
    while gap < 0 and first do
      local less = min(-gap, -groups[first])
      groups[first], gap = groups[first] + less, gap + less
      first = holding_back(groups)
    end
  end
  for other, differs in pairs(groups) do
    if differs == 0 then
      groups[other] = nil
    end
  end
  return next(groups) ~= nil and { g = groups, e = s.fin } or nil
end

-- A limit as it is in force.
function change.shared(limit, share)
  for _, differs in pairs(share.g) do
    limit = limit + differs
  end
  return max(0, limit)
end

-- A pool that the new plans include too: `reset` closes its period and opens one now; `anchor` is the
-- instant from which its boundaries count. Returns true if it begins anew.
function change.adapt(L, before, s, now, reset, anchor)
  if reset then
    local from = L.mode == 0 and (anchor or now) or s.anchor
    if s.start == now and s.used + s.drawn + s.over == 0 then
      s.anchor = from -- it has only just begun
    else
      before:close(now, from, s)
    end
    s.marks = 0
  end
  before:convert(L, now, s)
  if anchor and L.mode == 0 then
    s.anchor = anchor
  end
  if reset then
    s.start = now
  end
  if L.mode == 3 then
    if reset then
      s.start, s.fin, s.carried = 0, 0, 0
    end
  elseif L.unit > 0 then
    local _, fin = calendar.period(L, s.anchor, now)
    s.fin = fin
  end
  return reset
end

-- The next boundary of the pool of the longest interval among `names`, the latest among equals; nil: there is none.
function change.boundary(level, names, now)
  local longest, boundary, s = 0, nil, new_hand()
  for _, L in ipairs(level.parsed.limits) do
    if L.kind == POOL and names[L.name] and L.unit > 0 then
      local length = L.every * (L.unit == 1 and 1 or L.unit == 2 and DAY or MONTH)
      L = level.effective and level.effective[L.index] or L
      L:load(level.rec, now, s)
      if s.fin > 0 and (length > longest or length == longest and s.fin > boundary) then
        longest, boundary = length, s.fin
      end
    end
  end
  return boundary
end
