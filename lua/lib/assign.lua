-- Changing what a record holds: its plans, its overrides, a limit's use. Every such call names one
-- record, reads it, and writes it whole.
-- @gives assign

local assign = {}

-- Digits of an instant in ms, or nil for an empty text. The last one that a record can hold stands for any later.
function assign.instant(text, what)
  if text == "" then
    return nil
  end
  if not find(text, "^%d+$") or #text > 15 then
    bad(what .. ": milliseconds as up to 15 digits, or empty")
  end
  return min(tonumber(text), NEVER)
end

-- A whole number from `low` up to `high` as digits, -2^53 ("none") where `none` allows it.
function assign.whole(text, what, high, none)
  if none and text == "none" then
    return NONE
  end
  if not find(text, "^%d+$") or #text > 16 or tonumber(text) > high then
    bad(what .. ": a whole number up to " .. format("%.0f", high))
  end
  return tonumber(text)
end

-- The name of one limit.
function assign.name(text)
  if split_names(text)[1] ~= text then
    bad("name: one limit")
  end
  return text
end

-- Reads one record, an operation id beside it, and of the levels above only when they were last
-- seen. Returns the instant, or nil and a status.
function assign.read(keys, now_text, context_text, extra_text, op_text, mover)
  local with_op = op_text and op.check(op_text, keys[2])
  local above = with_op and 3 or 2
  local context, extra = request.context(context_text), request.extra(extra_text)
  local total = #keys - extra.behind
  if total < above - 1 or total > above + 2 then
    bad("keys: the record, the operation id if there is one, up to three records above")
  end
  local now = clock(now_text)
  local values = call("MGET", spread(keys, 1, total))
  for i = above, total do
    if values[i] then
      now = max(now, record.seen(values[i]))
    end
  end
  local manual = now_text ~= ""
  local seen, status, instant = open_records(keys, values, 1, context, extra, now, manual, mover)
  if with_op then
    local answer = op.find(values[2], op_text, seen or instant)
    if answer then
      return nil, answer
    end
  end
  return seen, status
end

-- Writes the record that was changed, and the operation id beside it. `verb`: goes with an operation id; `more`: what
-- stands behind the answer.
function assign.commit(keys, now, now_text, op_text, verb, more)
  if record.outlives_holds(levels[1]) then
    return STATUS_HOLDS .. char(1)
  end
  local op_key, op_value, op_ttl
  if op_text and op_text ~= "" then
    op_key = keys[2]
    local root_at = find(keys[1], "}:s:", 1, true) or 1
    local below_at = find(keys[1], "/", root_at, true) or #keys[1] + 1
    local note = op.note(verb, sub(keys[1], below_at), "", "", spack("<I6", now))
    op_value, op_ttl = op.value(op_text, now, STATUS_DONE .. (more or ""), now_text ~= "", note)
  end
  return store.write(1, {}, now, op_key, op_value, op_ttl) or STATUS_DONE .. (more or "")
end

-- After its grants have changed: the pools that are there for them alone. The record is to stay.
function assign.plan_pools(level, now)
  level.flags = level.flags - level.flags % LISTED
  record.convert(level, level.parsed, level.var and level.var.o, level.rev, now)
end

-- When a change is to come: nil now, an instant in ms, or "period_end".
function assign.when(text)
  return text == "period_end" and text or assign.instant(text, "when")
end

-- Names joined by commas as {name = true}.
function assign.names(text)
  local names = {}
  for _, name in ipairs(text ~= "" and split_names(text) or {}) do
    names[name] = true
  end
  return names
end

-- The pools of the plan that a record may leave, by the record's policy: msgpack {policy = names}.
function assign.leaving(text)
  local readable, by_policy = pcall(munpack, text)
  if text == "" then
    return {}
  elseif not readable or type(by_policy) ~= "table" or not find(text, "^[\128-\143\222\223]") then
    bad("leaving: a msgpack map of names by policy")
  end
  for fp, names in pairs(by_policy) do
    if type(fp) ~= "string" or type(names) ~= "string" then
      bad("leaving: a msgpack map of names by policy")
    end
    by_policy[fp] = assign.names(names)
  end
  return by_policy
end

-- The instant after now at which the change is to come; nil: now.
function assign.later(level, when, leaving, now)
  if when == "period_end" then
    return level.rec and change.boundary(level, leaving[level.fp] or {}, now)
  end
  return when and when > now and when or nil
end

-- Changes or clears (fields nil) the override of one limit.
function assign.override(level, name, fields, now)
  local overrides, any = {}, false
  for other, kept in pairs(level.var and level.var.o or {}) do
    if other ~= name then
      overrides[other], any = kept, true
    end
  end
  if fields then
    overrides[name], any = fields, true
  end
  level.flags = level.flags - level.flags % LISTED
  record.convert(level, level.parsed, any and overrides or nil, level.rev, now)
end

-- Sets the use of one limit. Returns false where the record has no such limit.
function assign.adjust(level, name, used, now)
  local L = level.parsed and level.parsed.names[name]
  if not L or L.kind == FLAG then
    return false
  end
  if L.kind == SLOTS then
    bad("adjust: " .. name .. " are slots, which follow their holds")
  end
  L = level.effective and level.effective[L.index] or L
  if L.kind ~= POOL and used > L.capacity then
    bad("used: at most " .. format("%.0f", L.capacity) .. " for " .. name)
  end
  local s = new_hand()
  L:load(level.rec, now, s)
  if L.kind == POOL and s.ended then
    hold.close(level, L, s.ended)
  end
  L:adjust(used, now, s)
  local late = not has(level.flags, LISTED) or s.opened
  if L.kind == POOL and used > 0 and late and ledger.follows(level, L) then
    bill.news(level).list = true
  end
  local rec = level.rec
  local before, behind = sub(rec, 21, L.offset - 1), sub(rec, L.offset + L.size)
  level.rec = sub(rec, 1, 14) .. spack("<I6", now) .. before .. L:pack(s) .. behind
  level.moved = true
  return true
end
