-- The decision that consume, check, report, refund and usage share: test every limit that the costs
-- reach, on every level of the path; then, if the call applies, charge; then describe.
--
-- Answer: status byte 0 | code | allowed | number of sections | now ms | balance, and per level that
-- has limits to show a section: level | number of limits | length of names | names | per limit
-- fits (0/1), limit, used, remaining, over, applied, resets at, retry at. -2^53 is "none".
-- @gives charge OK USAGE_EXCEEDED RATE_LIMITED hands amounts slices

local OK, NO_PLAN, NOT_INCLUDED, USAGE_EXCEEDED, RATE_LIMITED = 0, 1, 2, 3, 4
local ANSWER = "<BBBBdd"

local charge = {}
local amounts, slices, parts, states, alone = {}, {}, {}, {}, {}
local hands = {} -- a hand per reached limit, in the order of the answer

-- Packed doubles, one per cost name, into `amounts`.
function charge.amounts(text)
  local count = #text / 8
  if count < 1 or count > 64 or count % 1 > 0 then
    bad("amounts: one little-endian double per cost name, at least one")
  end
  for i = 1, count do
    local amount = sunpack("<d", text, i * 8 - 7)
    if not (amount >= 0 and amount <= MAX_AMOUNT and amount % 1 == 0) then
      bad("amounts: whole numbers from 0 to 10^15")
    end
    amounts[i] = amount
  end
  return count
end

-- A copy of the first `count` of them.
function charge.listed(count)
  local list = {}
  for i = 1, count do
    list[i] = amounts[i]
  end
  return list
end

-- Charges and answers in one go where nothing is out of the ordinary: every pool goes on in its period
-- and every limit has enough left. Fills `slices` and returns the answer; nil, and nothing done: take the long way.
function charge.plainly(count, names, amount_count, now)
  local n, shown, balance, whole = 1, 0, huge, false
  for i = 1, count do
    local level = levels[i]
    local parsed, rec = level.parsed, level.rec
    slices[i] = nil
    if parsed and parsed.held then
      local shape = policy.shape(parsed, names)
      if level.effective or level.grants or not shape.simple or shape.names ~= amount_count then
        return nil
      elseif (shape.indexed or level.var and level.var.p) and not has(level.flags, LISTED) then
        return nil
      end
      whole = whole or shape.whole
      local targets = shape.count
      if targets > 0 then
        shown, n = shown + 1, n + 1
        parts[n] = policy.head(shape, i)
        local m = 1
        states[1] = spack("<I6", now)
        for t = 1, targets do
          local target = shape[t]
          local L, first, gap = target.limit, target.first, target.gap
          local c = amounts[target.term] * target.factor
          if c == 0 then
            return nil
          end
          if gap then
            m = m + 1
            states[m] = sub(rec, gap, L.offset - 1)
          end
          local state, figures, left = take[L.kind](L, rec, now, c, c)
          if not state then
            return nil
          end
          m, n = m + 1, n + 1
          states[m], parts[n] = state, figures
          if first > 0 and left < balance * first then
            balance = left / first
          end
        end
        slices[i] = join(states, m)
      end
    end
  end
  if not whole then
    return nil
  end
  balance = balance < huge and floor(balance) or NONE
  parts[1] = spack(ANSWER, 0, OK, 1, shown, now, balance)
  return join(parts, n)
end

-- Takes every reached limit in hand and tests it. Returns how many there are and the code.
-- `with_slots`: "take" where they are charged too, "leave" where they are passed over; else none may be reached.
function charge.decide(count, names, amount_count, now, with_slots)
  local total, code, held, whole, shaped = 0, OK, false, false, nil
  for i = 1, count do
    local level = levels[i]
    local parsed, in_force = level.parsed, level.effective
    if parsed and parsed.held then
      held = true
      local shape = policy.shape(parsed, names)
      if shape.names ~= amount_count then
        bad("amounts: one per cost name")
      end
      level.shape = shape
      whole = whole or shape.whole
      shaped = shaped or shape
      for t = 1, shape.count do
        local target = shape[t]
        total = total + 1
        local s = hands[total]
        if not s then
          s = new_hand()
          hands[total] = s
        end
        local c
        if target.terms then
          c = 0
          for _, term in ipairs(target.terms) do
            c = c + amounts[term[1]] * term[2]
          end
        else
          c = amounts[target.term] * target.factor
        end
        local L = in_force and in_force[target.index] or target.limit
        s.limit, s.cost, s.fits, s.applied, s.charged = L, c, true, 0, false
        grants.arm(level, L, now, s)
        if L.kind == SLOTS then
          s.due = level.holds and level.holds.due or nil
          if with_slots == "leave" then
            s.cost, c = 0, 0
          elseif with_slots ~= "take" then
            bad(L.name .. " are slots: only a reservation takes them")
          end
        end
        if L.kind == FLAG then
          s.cost = 0 -- it only has to be included
        elseif c > L:load(level.rec, now, s) and c > 0 then
          s.fits = false
          if L.kind == POOL then
            code = USAGE_EXCEEDED
          elseif code == OK then
            code = RATE_LIMITED
          end
        end
        if L.kind == POOL and (s.grants or s.drawn > 0) then
          level.draws = true
        end
      end
    end
  end
  if not held then
    return 0, NO_PLAN
  end
  if not whole then
    -- No level reaches every name by itself; together they may.
    for j = 1, shaped.names do
      local reached = false
      for i = 1, count do
        local shape = levels[i].shape
        reached = reached or shape and shape.reached[j]
      end
      if not reached then
        return total, NOT_INCLUDED
      end
    end
  end
  return total, code
end

-- Charges everything that was decided on; `partly` charges a bucket only what it has left.
function charge.apply(total, now, partly)
  for k = 1, total do
    local s = hands[k]
    local L, c = s.limit, s.cost
    if partly and c > s.left and L.kind ~= POOL then
      c = s.left
    end
    if c > 0 then
      L:charge(c, now, s)
      s.applied, s.charged = c, true
      if L.kind == POOL then
        event.charged(L, s)
      end
    end
  end
end

-- Ends the call where apply would end it.
function charge.guard(total)
  for k = 1, total do
    local s = hands[k]
    if s.limit.kind == POOL then
      s.limit:guard(s.cost, s)
    end
  end
end

-- Gives back what can be; marks every limit as fitting, since a refund is never refused.
function charge.give_back(total, now)
  for k = 1, total do
    local s = hands[k]
    s.fits = true
    if s.cost > 0 then
      s.applied = s.limit:refund(s.cost, now, s)
    end
  end
end

-- What the pools of a level have to tell once its new states are stored; its hands stand behind `k`.
local function tell(level, shape, k)
  for t = 1, shape.count do
    local s = hands[k + t]
    local L = s.limit
    if L.kind == POOL then
      if s.ended then
        hold.close(level, L, s.ended)
      end
      if s.fired then
        local events = bill.news(level).events
        for _, row in ipairs(s.fired) do
          row.plan = level.parsed.plan
          events[#events + 1] = row
        end
      end
      local late = not has(level.flags, LISTED) or s.opened and not level.parsed.billed
      if s.charged and late and ledger.follows(level, L) then
        bill.news(level).list = true
      end
    end
  end
end

-- The bytes that replace 15.. of every level where something was applied, or a pool has something to say.
function charge.slices(count, now)
  local k = 0
  for i = 1, count do
    local level = levels[i]
    local shape = level.shape
    slices[i] = nil
    if shape then
      local n, touched = 1, false
      parts[1] = spack("<I6", now)
      for t = 1, shape.count do
        local target, s = shape[t], hands[k + t]
        local L = s.limit
        if L.kind < FLAG then
          if s.applied > 0 or L.kind == POOL and s.fired then
            touched = true
          end
          if target.gap then
            n = n + 1
            parts[n] = sub(level.rec, target.gap, L.offset - 1)
          end
          n = n + 1
          parts[n] = L:pack(s)
        end
      end
      if touched then
        slices[i] = join(parts, n)
        tell(level, shape, k)
      end
      k = k + shape.count
    end
  end
end

-- A pool that has live grants, or drew from some in this period, is a "P": behind the figures of its level stands
-- what was drawn, and what the live ones have left. Returns the head of the level and these figures; nil: no pool
-- is.
local function granted(shape, i, k)
  local names, figures = {}, {}
  for t = 1, shape.count do
    local L, s = shape[t].limit, hands[k + t]
    local draws = L.kind == POOL and (s.grants or s.drawn > 0)
    names[t] = (draws and "P" or LETTERS[L.kind]) .. L.name .. "\n"
    if draws then
      figures[#figures + 1] = spack("<dd", s.drawn, s.granted)
    end
  end
  if not figures[1] then
    return nil
  end
  local described = concat(names)
  return spack("<BBI2", i, shape.count, #described) .. described, concat(figures)
end

-- What the caller gets, figures as they are after the call.
function charge.answer(count, now, code, allowed)
  local k, n, shown = 0, 1, 0
  local balance, counted, nameless = huge, false, false
  for i = 1, count do
    local level = levels[i]
    local shape = level.shape
    nameless = nameless or shape and shape.nameless
    if shape and shape.count > 0 then
      local head, more_figures
      if level.draws then
        head, more_figures = granted(shape, i, k)
      end
      shown, n = shown + 1, n + 1
      parts[n] = head or policy.head(shape, i)
      for t = 1, shape.count do
        local first, s = shape[t].first, hands[k + t]
        local L = s.limit
        n = n + 1
        if L.kind == FLAG then
          parts[n] = spack(FIGURES, 1, NONE, 0, NONE, 0, 0, NONE, NONE)
        else
          local retry = NONE
          -- A refused first sight leaves no record: no period of its pools ever passes.
          if not s.fits and code ~= OK and not (level.fresh and L.kind == POOL) then
            retry = record.retry_at(level, L, s.cost, now, s)
          end
          local limit, used, left, over, resets = L:figures(now, s)
          parts[n] = spack(FIGURES, s.fits and 1 or 0, limit, used, left, over, s.applied, resets, retry)
          if first > 0 and L.overage ~= NONE then
            local more = max(0, s.left + L.overage) / first
            if more < balance then
              balance = floor(more)
            end
          end
        end
        if first > 0 then
          counted = true
        end
      end
      k = k + shape.count
      if more_figures then
        n = n + 1
        parts[n] = more_figures
      end
    end
  end
  if not counted then
    balance = nameless and code == OK and NONE or 0
  elseif balance == huge then
    balance = NONE
  end
  parts[1] = spack(ANSWER, 0, code, allowed and 1 or 0, shown, now, balance)
  return join(parts, n)
end

-- Reads a path and, with an operation id, the answer stored under it; everything in one command.
-- Returns the number of levels, the instant, the op key - or nil and the status to answer. `values`, `now`:
-- what is stored under the keys and the instant, where they have been read. `unasked`: the answer stored under
-- the operation id is not for this function to give; it comes as the fourth value.
function charge.read(keys, args, values, now, unasked)
  local extra = request.extra(args[6])
  local count = #keys - extra.behind
  local total = count
  local with_op = args[5] ~= "" and op.check(args[5], keys[count])
  if with_op then
    count = count - 1
  end
  if count < 1 or count > 4 then
    bad("keys: one per level of the path (1 to 4), then that of the operation id")
  end
  local manual = args[1] ~= ""
  local context = contexts[args[2]] or request.context(args[2])
  now = now or clock(args[1])
  if not values then
    if total == 1 then
      alone[1], values = call("GET", keys[1]), alone
    else
      values = call("MGET", spread(keys, 1, total))
    end
  end
  local seen, status, instant = open_records(keys, values, count, context, extra, now, manual)
  if with_op and not unasked then
    -- A stored answer is older than any plan change: it counts before what the records need.
    local answer = op.find(values[count + 1], args[5], seen or instant)
    if answer then
      return nil, answer
    end
  end
  if not seen then
    return nil, status
  end
  return count, seen, with_op and keys[count + 1] or nil, values[count + 1]
end

-- Where what was charged to the limits in hand came from, as far as the answer does not say it; empty where it
-- was the period's allowance, or a bucket, at the instant of the call. Else msgpack, a list of parts {number of
-- the limit in the answer, units, mark, over, sources}: as a hold's parts (see hold.lua); mark -1: charged at the
-- instant of the call. A limit that is not listed has one part, all that was applied to it.
-- `shares`: by number the part {units, mark, over, sources} that a hold which ends here had charged before.
function charge.sources(total, shares)
  local parts_found
  for k = 1, total do
    local s, share = hands[k], shares and shares[k]
    local charged = s.applied
    if share then
      parts_found = parts_found or {}
      parts_found[#parts_found + 1] = { k, share.units, share.mark, share.over, share.sources }
      charged = charged - share.units
    end
    local beyond, taken = 0, nil
    if charged > 0 and s.limit.kind == POOL then
      beyond, taken = s.beyond, s.taken
    end
    if charged > 0 and (share or beyond > 0 or taken) then
      parts_found = parts_found or {}
      parts_found[#parts_found + 1] = { k, charged, -1, beyond, taken }
    end
  end
  return parts_found and mpack(parts_found) or ""
end

-- What is kept of an operation beside its answer. `shares`: as above; no `total`: nothing is to be said of sources.
function charge.note(count, verb, names, packed, total, shares)
  local below = op.below(levels[1].key, levels[count].key)
  return op.note(verb, below, names, packed, total and charge.sources(total, shares) or "")
end

-- Writes what was applied, together with the answer where an operation id asks to keep it, and the note of what
-- it was. Returns as store.write.
function charge.commit(count, now, args, op_key, answer, note)
  local op_value, op_ttl
  if op_key then
    op_value, op_ttl = op.value(args[5], now, answer, args[1] ~= "", note)
  end
  return store.write(count, slices, now, op_key, op_value, op_ttl)
end

-- A pool that refuses says that it is exhausted, once in its period, and nothing else is written. Returns as
-- store.write.
function charge.exhaust(count, now)
  local k, any = 0, false
  for i = 1, count do
    local level = levels[i]
    local shape = level.shape
    for t = 1, shape and shape.count or 0 do
      local s = hands[k + t]
      -- A refused first sight leaves no trace, nor does a record join a plan for a refusal; and where no period is
      -- open there is none to exhaust.
      if s.limit.kind == POOL and not s.fits and s.fin > 0 and not level.fresh and not level.joins then
        any = event.exhausted(s.limit, s) or any
      end
    end
    k = k + (shape and shape.count or 0)
  end
  if not any then
    return nil
  end
  charge.slices(count, now)
  charge.only_touched(count)
  return store.write(count, slices, now)
end

-- A record that is new or moved is not written for that alone.
function charge.only_touched(count)
  for i = 1, count do
    if not slices[i] then
      levels[i].fresh, levels[i].moved = false, false
    end
  end
end
