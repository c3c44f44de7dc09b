-- Records: one string per subject, read once and written once.
--
--   byte 1      layout version (2)
--   byte 2      flags: 1 made by first sight, 2 has a variable part, 4 carries its expiry, 8 has holds, 32 has a
--               variable part of nothing but books (then not 2), 64 is in its partition's index
--   byte 3-10   name of the policy it is laid out by
--   byte 11-14  catalog revision it was brought to
--   byte 15-20  last seen: the instant of its last write, ms
--   byte 21-    state of every limit, in the policy's order
--   then, with flag 4, 6 bytes: the instant its Redis TTL was set to
--   then, with flag 8, 6 bytes: `due`, the instant at which the first of its holds expires
--   with flag 128, behind the states: pools that only grants fill; with flag 16, behind all of this, a digest of
--   the grants (both: grants.lua)
--   then, with flag 2 or 32, msgpack {o = {name = {l, v, b, e}}, g = {name = n}, b, k, i, p, r}: overrides (limit,
--   overage, burst, expires); how often a limit began anew while holds were open, so that a hold gives nothing
--   back to a state that it never charged; books (bill.lua); grants (k, i); p and r: see change.lua
--
-- A level in hand is a table: key, rec (the record's bytes, always whole), parsed (its policy),
-- flags, var, effective (limits under an override, by index), holds (see hold.lua), grants (see grants.lua); fresh,
-- moved: bytes that differ from what is stored; settled: it has to be stored whole; joins: the call asked for a
-- plan that it did not hold; news: see bill.lua; steps: changes that are due (change.lua). At most four are in
-- hand; the tables are reused from call to call.
-- @gives record levels HEAD has_more

local HEAD = "<BBc8I4I6"

local record = {}
local levels = { {}, {}, {}, {} }

-- When a record was last written.
function record.seen(rec)
  if #rec < HEADER then
    unreadable(rec)
  end
  return (sunpack("<I6", rec, 15))
end

-- Whether there is more in a record than the state.
local function has_more(flags)
  return flags % LISTED >= VAR
end

-- A variable part with another value of one field; nil if nothing is left.
function record.with(var, field, value)
  local changed = {}
  for name, kept in pairs(var or {}) do
    changed[name] = kept
  end
  changed[field] = value
  return next(changed) ~= nil and changed or nil
end

-- Puts the record's bytes together: header, state, and what `level` says of the rest.
function record.rebuild(level, rev, seen, state)
  local flags = (has(level.flags, FIRST) and FIRST or 0) + (has(level.flags, LISTED) and LISTED or 0)
  local tail, due = "", level.holds and level.holds.due
  if has(level.flags, TTL) then
    flags = flags + TTL
    tail = spack("<I6", level.expires)
  end
  if due then
    flags = flags + HOLDS
    tail = tail .. spack("<I6", due)
  end
  local var = level.var
  local read = var and (not var.b or record.with(var, "b", nil)) -- whether a plain charge has to know of it
  if level.grants then
    local digest, rows, names = grants.stored(level, state, seen)
    local both = { k = rows, i = names }
    for name, value in pairs(var or {}) do
      both[name] = value
    end
    var, tail, flags = both, tail .. digest, flags + GRANTS + (names and IMPLIED or 0)
  end
  if var then
    flags = flags + (read and VAR or BOOKS)
    tail = tail .. mpack(var)
  end
  level.flags, level.rev, level.seen = flags, rev, seen
  level.rec = spack(HEAD, LAYOUT, flags, level.parsed.fp, rev, seen) .. state .. tail
end

-- Packs the states that `prepare(limit, hand)` makes for every limit of a policy.
local function pack_states(parsed, effective, prepare)
  local parts, s = {}, new_hand()
  for i = 1, #parsed.limits do
    local L = parsed.limits[i]
    if L.kind < FLAG then
      local E = effective and effective[i] or L
      if L.implied and L.name == parsed.implied[1] then
        parts[#parts + 1] = char(#parsed.implied)
      end
      prepare(E, s)
      parts[#parts + 1] = E:pack(s)
    end
  end
  return concat(parts)
end

-- A record for a subject that has none. Nothing is stored yet.
-- `anchors`: instants from which the pools of these names count, instead of now.
function record.fresh(level, parsed, rev, now, flags, anchors)
  level.parsed, level.flags, level.fresh = parsed, flags, true
  local state = pack_states(parsed, nil, function(L, s)
    L:fresh(now, anchors and anchors[L.name] or now, s)
  end)
  record.rebuild(level, rev, now, state)
end

-- A limit of a policy as it is in force under an override, or a share of this period; either may be nil.
local function in_force(L, fields, share)
  if share and not (fields and fields.l) then
    local shared = policy.overridden(L, { l = change.shared(L.limit, share), v = fields and fields.v })
    shared.renewed = L.limit
    return shared
  end
  return fields and policy.overridden(L, fields) or L
end

-- Which limits differ from the policy's, {index = limit}, or nil: by an override, or for this period only.
local function effective_limits(parsed, overrides, shares)
  local changed
  for name, fields in pairs(overrides or {}) do
    local L = parsed.names[name]
    if L and L.kind < FLAG and not L.implied then
      changed = changed or {}
      changed[L.index] = in_force(L, fields)
    end
  end
  for name, share in pairs(shares or {}) do
    local L = parsed.names[name]
    changed = changed or {}
    changed[L.index] = in_force(L, overrides and overrides[name], share)
  end
  return changed
end

-- The variable part: what it was, but for overrides, shares and the generations of limits while holds are
-- open. `begun`: names of limits that begin anew.
local function variable(level, overrides, begun, shares)
  local generations
  if level.holds and level.holds.due then
    generations = level.var and level.var.g
    for name in pairs(begun) do
      local bumped = {}
      for other, n in pairs(generations or {}) do
        bumped[other] = n
      end
      bumped[name] = (bumped[name] or 0) + 1
      generations = bumped
    end
  end
  return record.with(record.with(record.with(level.var, "o", overrides), "g", generations), "r", shares)
end

-- No hold is open any more: nobody asks how often a limit began anew.
function record.drop_generations(level)
  level.var = record.with(level.var, "g", nil)
end

-- Whether a limit is carried over to L. A pool that was there for grants alone is none that plans include.
local function goes_on(before, L)
  return L and L.kind == before.kind and L.implied == before.implied
end

-- Lays the record out anew: every limit is brought to `now` under its old definition, then carried
-- over to its new one (matched by name and kind), or made fresh, counting from `anchors` as above.
-- `adapt(limit, before, hand)` carries over in its own way, and returns true if the limit begins anew. `how`,
-- `group`: which change that is, if it is one of plans.
function record.convert(level, parsed, overrides, rev, now, anchors, adapt, how, group)
  local from, old_effective, rec = level.parsed, level.effective, level.rec
  parsed = implied.pools(level, parsed)
  local effective, begun = effective_limits(parsed, overrides), {}
  local shares, shared = level.var and level.var.r, nil
  local listed = has(level.flags, LISTED) and ledger.due(level, from, rec)
  for i, before in ipairs(from.limits) do
    local L = parsed.names[before.name]
    if before.kind < FLAG and not goes_on(before, L) then
      begun[before.name] = true
      if before.kind == POOL then
        ledger.drop(level, old_effective and old_effective[i] or before, now)
      end
    end
  end
  local state = pack_states(parsed, effective, function(L, s)
    local before = from.names[L.name]
    if before and old_effective and old_effective[before.index] then
      before = old_effective[before.index]
    end
    grants.arm(level, L, now, s)
    if before and goes_on(before, L) then
      before:load(rec, now, s)
      local ended = L.kind == POOL and s.ended
      if L.kind == 3 and (before.per ~= L.per or before.tick ~= L.tick) then
        begun[L.name] = true
      end
      if adapt then
        if adapt(L, before, s) then
          begun[L.name] = true
        end
      else
        before:convert(L, now, s)
      end
      if L.kind == POOL then
        ledger.move(level, before, L, s, ended)
        local share
        if (shares or how == "prorate") and not (begun[L.name] or L.implied) then
          local was, is = from.names[L.name].limit, parsed.names[L.name].limit
          share = change.share(was, is, shares and shares[L.name], how, group, s, now)
        end
        if share then
          shared = shared or {}
          shared[L.name], L = share, in_force(parsed.names[L.name], overrides and overrides[L.name], share)
        end
        pool.remark(before, L, s)
      end
    else
      L:fresh(now, anchors and anchors[L.name] or now, s)
    end
  end)
  if has(level.flags, TTL) and not parsed.forgettable or overrides then
    level.flags = (has(level.flags, FIRST) and FIRST or 0) + (listed and LISTED or 0)
  end
  level.parsed, level.var = parsed, variable(level, overrides, begun, shared)
  level.effective = shared and effective_limits(parsed, overrides, shared) or effective
  record.rebuild(level, rev, now, state)
  ledger.relist(level, listed or huge)
  level.moved = true
end

-- Gives a record the plans of another policy, by a change of `group`: "keep", "reset" or "prorate". `pools`: the
-- names that `reset` and `anchor` are for.
function record.change(level, to, rev, now, group, how, anchor, pools)
  local anchors, reset = {}, how == "reset"
  for name in pairs(pools) do
    anchors[name] = anchor
  end
  if not level.rec then
    record.fresh(level, to, rev, now, 0, anchors)
    return
  end
  level.flags = level.flags - level.flags % LISTED -- no longer a record of first sight
  record.convert(level, to, level.var and level.var.o, rev, now, anchors, function(L, before, s)
    if L.kind == POOL and pools[L.name] and (reset or anchor) then
      return change.adapt(L, before, s, now, reset, anchor)
    end
    before:convert(L, now, s)
  end, how, group)
end

-- Writes the bytes anew where only what stands behind the states has changed.
local function rewrite(level, seen)
  record.rebuild(level, level.rev, seen, sub(level.rec, HEADER + 1, level.parsed.tail - 1))
end

-- Lets a change of a group wait (nil: none does any more), in the place of the one that did.
function record.wait(level, group, waiting, now)
  local listed = waiting and has(level.flags, LISTED) and ledger.due(level, level.parsed, level.rec) or huge
  local waits = record.with(level.var and level.var.p, group, waiting)
  level.var = record.with(level.var, "p", waits)
  if waiting then
    level.flags = level.flags - level.flags % LISTED
    rewrite(level, now)
    ledger.relist(level, listed)
    level.moved = true
  end
end

-- The override that ends first: its name and the instant, if that is not after now.
local function ended_override(level, now)
  local first, name
  for candidate, fields in pairs(level.var and level.var.o or {}) do
    if fields.e and fields.e <= now and (not first or fields.e < first) then
      first, name = fields.e, candidate
    end
  end
  return name, first
end

-- When a call that L refuses would fit, as L:retry_at; where L is under an override that ends before that, by what is
-- in force from then on.
function record.retry_at(level, L, c, now, s)
  local at, var = L:retry_at(c, now, s), level.var
  local fields = var and var.o and var.o[L.name]
  local ends = fields and fields.e
  if not ends or L.kind == SLOTS or at ~= NONE and at < ends or ends - now > CENTURY then
    return at
  end
  local after, share, t, rec = level.parsed.names[L.name], var.r and var.r[L.name], new_hand(), level.rec
  after = in_force(after, nil, share and share.e > ends and share)
  grants.arm(level, after, ends, t)
  L:load(rec, ends, t)
  L:convert(after, ends, t)
  rec = sub(rec, 1, L.offset - 1) .. after:pack(t) .. sub(rec, L.offset + L.size)
  return c <= after:load(rec, ends, t) and ends or after:retry_at(c, ends, t)
end

-- Ends an override; without one, only what has lapsed with its period.
local function end_override(level, ended, at)
  local moved, rest = level.moved, level.var.o
  if ended then
    rest = record.with(rest, ended, nil)
  end
  record.convert(level, level.parsed, rest, level.rev, at)
  level.moved, level.settled = moved, true
end

-- Lays the record out anew where something of its grants has come by itself.
local function regrant(level, at)
  local moved = level.moved
  record.convert(level, level.parsed, level.var and level.var.o, level.rev, at)
  level.moved, level.settled = moved, true
end

-- Does one by one, each at its own instant, what comes by itself: overrides and limits of one period end, changes
-- of plans come, grants end and begin, holds end; at one instant in this order.
local function catch_up(level, rev, seen, now)
  local given, steps, step, last, begun = false, level.steps or {}, 1, seen, seen
  while true do
    local due = level.holds and level.holds.due or NEVER
    local name, ends = ended_override(level, now)
    local lapse, coming = change.lapse(level.var, now), steps[step]
    local over, begins = grants.next(level, begun)
    local at = min(ends or NEVER, lapse, coming and coming.at or NEVER, over, begins, due)
    if at > now then
      break
    end
    last = max(at, last) -- a grant that was over may have had something with a hold until now
    if at == ends then
      end_override(level, name, last)
    elseif at == lapse then
      end_override(level, nil, last)
    elseif coming and at == coming.at then
      local waiting = coming.waiting
      record.wait(level, coming.group, nil)
      record.change(level, coming.to, rev, last, coming.group, waiting.c, waiting.n, coming.pools)
      step = step + 1
    elseif at == over then
      grants.sweep(level, last)
      regrant(level, last)
    elseif at == begins then
      regrant(level, last)
      for pool_name in pairs(grants.beginning(level, at)) do
        pool.rearm(level, pool_name, last)
      end
      begun = at
    else
      hold.expire(level, last, now)
      given = true
    end
  end
  if given then
    if not level.holds.due then
      record.drop_generations(level)
    end
    level.settled = true
  end
  if given or level.steps then
    rewrite(level, level.steps and now or level.seen)
  end
end

-- Decodes the variable part, while the bytes are as they are stored.
function record.unpack_variable(level)
  local at, digest = grants.behind(level, level.parsed.tail)
  local var = implied.variable(level.rec, at)
  if digest then
    grants.read(level, var.k, digest)
    var.k, var.i = nil, nil
  end
  level.var = next(var) and var or nil
end

-- Decodes what few records have. `rev`: of the policies that changes lead to.
function record.read_variable(level, rev, seen, now)
  if has(level.flags, TTL) then
    level.expires = sunpack("<I6", level.rec, level.parsed.tail)
  end
  if has(level.flags, VAR) then
    level.effective = effective_limits(level.parsed, level.var.o, level.var.r)
  elseif has(level.flags, BOOKS) then
    record.unpack_variable(level)
  end
  catch_up(level, rev, seen, now)
end

-- Takes a record in hand as it was written, and brings it nowhere. `parsed`: the policy that it names; returns whether
-- that is at hand.
function record.peek(level, key, rec, parsed)
  if #rec < HEADER then
    unreadable(rec)
  end
  local version, flags, fp, rev, seen = sunpack(HEAD, rec)
  if version ~= LAYOUT then
    error("METERD-LAYOUT record of layout " .. version, 0)
  end
  level.key, level.rec, level.flags, level.fp, level.rev, level.seen = key, rec, flags, fp, rev, seen
  level.parsed, level.var, level.news, level.grants = implied.under(level, parsed), nil, nil, nil
  level.holds = has(flags, HOLDS) and {} or nil
  if level.parsed and (has(flags, VAR) or has(flags, BOOKS)) then
    record.unpack_variable(level)
  end
  return level.parsed ~= nil
end

-- Whether the record is to stay from now on, while the keys of its holds, which are not at hand, would go.
function record.outlives_holds(level)
  local H = level.holds
  return H and H.brief and not H.hash and not has(level.flags, TTL)
end
