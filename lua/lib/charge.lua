-- The decision that consume, check, report, refund and usage share: test every limit that the costs
-- reach, on every level of the path; then, if the call applies, charge; then describe.
--
-- Answer: status byte 0 | code | allowed | number of sections | now ms | balance, and per level that
-- has limits to show a section: level | number of limits | length of names | names | per limit
-- fits (0/1), limit, used, remaining, over, applied, resets at, retry at. -2^53 is "none".

local OK, NO_PLAN, NOT_INCLUDED, USAGE_EXCEEDED, RATE_LIMITED = 0, 1, 2, 3, 4
local STATE, ANSWER = 8, 7 -- how many numbers a limit takes in S, and in O behind its flag

local charge = {}
local amounts, costs, fits, applied = {}, {}, {}, {}
local targets, target_levels = {}, {}
local slices = {}

-- Packed doubles, one per cost name, into `amounts`.
function charge.amounts(text)
  local count = #text / 8
  if count < 1 or count > 64 or count % 1 > 0 then
    bad("amounts: one little-endian double per cost name, at least one")
  end
  if count == 1 then
    local amount = sunpack("<d", text)
    if not is_amount(amount) then
      bad("amounts: whole numbers from 0 to 10^15")
    end
    amounts[1] = amount
    return 1
  end
  for i = 1, count do
    local amount = sunpack("<d", text, i * 8 - 7)
    if not is_amount(amount) then
      bad("amounts: whole numbers from 0 to 10^15")
    end
    amounts[i] = amount
  end
  return count
end

-- Lays every reached limit out in S and tests it. Returns how many there are and the code.
function charge.decide(count, names, amount_count, now)
  local total, code, held, whole, shaped = 0, OK, false, false, nil
  for i = 1, count do
    local level = levels[i]
    local parsed = level.parsed
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
        targets[total], target_levels[total] = target, level
        local c
        if target.terms then
          c = 0
          for _, term in ipairs(target.terms) do
            c = c + amounts[term[1]] * term[2]
          end
        else
          c = amounts[target.term] * target.factor
        end
        local L = target.limit
        if level.effective then
          L = level.effective[target.index] or L
        end
        costs[total], applied[total] = c, 0
        if L.kind == FLAG then
          fits[total] = true
        else
          local available = L.load(L, level.rec, now, total * STATE)
          local fit = c <= available or c == 0
          fits[total] = fit
          if not fit then
            if L.kind == POOL then
              code = USAGE_EXCEEDED
            elseif code == OK then
              code = RATE_LIMITED
            end
          end
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

local function effective(target, level)
  return level.effective and level.effective[target.index] or target.limit
end

-- Charges everything that was decided on; `partly` charges a bucket only what it has left.
function charge.apply(total, now, partly)
  for k = 1, total do
    local c = costs[k]
    if c > 0 then
      local L = effective(targets[k], target_levels[k])
      if L.kind ~= FLAG then
        if partly and L.kind ~= POOL then
          c = min(c, S[k * STATE + 8])
        end
        if c > 0 then
          L.charge(L, c, now, k * STATE)
          applied[k] = c
        end
      end
    end
  end
end

-- Ends the call where apply would end it.
function charge.guard(total)
  for k = 1, total do
    local L = effective(targets[k], target_levels[k])
    if L.kind == POOL then
      L.guard(L, costs[k], k * STATE)
    end
  end
end

-- Gives back what can be; marks every limit as fitting, since a refund is never refused.
function charge.give_back(total, now)
  for k = 1, total do
    local L = effective(targets[k], target_levels[k])
    fits[k] = true
    if costs[k] > 0 and L.kind ~= FLAG then
      applied[k] = L.refund(L, costs[k], now, k * STATE)
    end
  end
end

-- The bytes that replace 15.. of every level where something was applied.
function charge.slices(count, now)
  local k = 0
  for i = 1, count do
    local level = levels[i]
    local shape = level.shape
    slices[i] = nil
    if shape then
      local n, touched = 1, false
      N[1] = now
      for t = 1, shape.count do
        k = k + 1
        local L = shape[t].limit
        if L.kind < FLAG then
          touched = touched or applied[k] > 0
          if shape[t].gap then
            n = n + 1
            N[n] = sub(level.rec, shape[t].gap, L.offset - 1)
          end
          n = L.put(L, k * STATE, n)
        end
      end
      if touched then
        slices[i] = spack(shape.write, spread(N, 1, n))
      end
    end
  end
end

-- What the caller gets, figures as they are after the call.
function charge.answer(count, now, code, allowed)
  local k, sections, balance = 0, "", code == NO_PLAN and 0 or huge
  local shown, counted = 0, code == NO_PLAN
  for i = 1, count do
    local level = levels[i]
    local shape = level.shape
    if shape and shape.count > 0 then
      shown = shown + 1
      O[1], O[2], O[3], O[4] = i, shape.count, #shape.described, shape.described
      local o = 5
      for t = 1, shape.count do
        k = k + 1
        local target = shape[t]
        local L = effective(target, level)
        if L.kind == FLAG then
          O[o], O[o + 1], O[o + 2], O[o + 3], O[o + 4] = 1, NONE, 0, NONE, 0
          O[o + 5], O[o + 6], O[o + 7] = 0, NONE, NONE
        else
          local b = k * STATE
          O[o] = fits[k] and 1 or 0
          O[o + 6] = L.figures(L, now, b, o + 1)
          O[o + 5] = applied[k]
          O[o + 7] = NONE
          if not fits[k] and code ~= OK then
            -- A refused first sight leaves no record: no period of its pools ever passes.
            if L.kind ~= POOL or not level.fresh then
              O[o + 7] = L.retry_at(L, costs[k], now, b)
            end
          end
          if target.first > 0 and L.overage ~= NONE then
            local more = max(0, S[b + 8] + L.overage) / target.first
            if more < balance then
              balance = floor(more)
            end
          end
        end
        if target.first > 0 then
          counted = true
        end
        o = o + ANSWER + 1
      end
      local section = spack(shape.answer, spread(O, 1, o - 1))
      sections = shown == 1 and section or sections .. section
    end
  end
  if not counted then
    balance = 0
  end
  return spack("<BBBBdd", 0, code, allowed and 1 or 0, shown, now, balance == huge and NONE or balance) .. sections
end

-- Reads a path and, with an operation id, the answer stored under it; everything in one command.
-- Returns the number of levels, the instant, the op key - or nil and the status to answer.
function charge.read(keys, args)
  local count = #keys
  local with_op = op.check(args[5], keys[count])
  if with_op then
    count = count - 1
  end
  if count < 1 or count > 4 then
    bad("keys: one per level of the path (1 to 4), then that of the operation id")
  end
  local manual = args[1] ~= ""
  local context = record.context(args[2])
  local extra = record.extra(args[6])
  local now = clock(args[1])
  local values
  if #keys == 1 then
    values = { call("GET", keys[1]) }
  else
    values = call("MGET", spread(keys))
  end
  local seen, status, instant = record.open(keys, values, count, context, extra, now, manual)
  if with_op then
    -- A stored answer is older than any plan change: it counts before what the records need.
    local answer = op.find(values[count + 1], args[5], seen or instant)
    if answer then
      return nil, answer
    end
  end
  if not seen then
    return nil, status
  end
  return count, seen, with_op and keys[count + 1] or nil
end

-- Writes what was applied, together with the answer where an operation id asks to keep it.
-- `only_touched`: a record that is new or moved is not written for that alone.
function charge.commit(count, now, args, op_key, answer, only_touched)
  local op_value, op_ttl
  if op_key then
    op_value, op_ttl = op.value(args[5], now, answer, args[1] ~= "")
  end
  charge.slices(count, now)
  if only_touched then
    for i = 1, count do
      if not slices[i] then
        levels[i].fresh, levels[i].moved = false, false
      end
    end
  end
  record.write(count, slices, now, op_key, op_value, op_ttl)
end
