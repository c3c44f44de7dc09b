-- The plain case in a script, which nothing outlives: as lib/plain.lua, with one cost name. Of the policy that
-- the call brings along it reads the limits that this name reaches, and no more. A script goes on to all
-- that the long way needs only where this has no answer.
-- @gives plain

local COLUMNS, RATES = { [0] = 4, 15, 6, 6, 6, 2 }, { [0] = 4, 13, 6, 6, 6, 2 }

local plain = {}

-- A row of a policy as the limit that `take` works on; nil where it is none.
local function read_limit(row, offset)
  local limit, third, per = row[3], row[4], row[5]
  if #row ~= COLUMNS[row[1]] or limit % 1 > 0 or third % 1 > 0 or third < 0 and third ~= NONE then
    return nil
  elseif #row[2] > 64 or not find(row[2], "^[%w_.-]+$") then
    return nil
  elseif row[1] == POOL then
    return { offset = offset, limit = limit, overage = third, warn_at = row[14], warn_below = row[15] }
  end
  local capacity = third == NONE and limit or third
  if per % 1 > 0 or per < 1 or per > 366 * 86400000 or max(limit, capacity) > MAX_RATE then
    return nil
  end
  local tick = tick_ms(max(limit, capacity), per)
  return { offset = offset, limit = limit, overage = 0, capacity = capacity, tick = tick, period = ceil_div(per, tick) }
end

-- By how much an amount of `name` is multiplied; 0: it does not reach the limit.
local function factor(row, name)
  local rates = row[RATES[row[1]]]
  if #rates == 0 then
    return row[2] == name and 1 or 0
  end
  local sum = 0
  for r = 1, #rates, 2 do
    if rates[r] == name then
      sum = sum + rates[r + 1]
    end
  end
  return sum
end

-- Charges `amount` of `name`, or asks whether that fits. Returns the answer and the bytes from 15 on.
-- `listed`: the record is in its partition's index, where a pool that resets or is billed has to be.
local function charge_all(asked, rec, now, rows, name, amount, listed)
  local at, from, count, balance = HEADER + 1, HEADER + 1, 0, huge
  local slice, described, figures = spack("<I6", now), "", ""
  for i = 1, #rows do
    local row = rows[i]
    local kind = row[1]
    if kind == FLAG then
      if row[2] == name then
        return nil
      end
    else
      local by = factor(row, name)
      if by > 0 then
        if kind == SLOTS or kind == POOL and not listed and row[7] + row[12] > 0 then
          return nil
        end
        local L, c = read_limit(row, at), amount * by
        local state, shown, more = take[kind](L, rec, now, c, asked == CHECK and 0 or c)
        if not state then
          return nil
        end
        slice = slice .. sub(rec, from, at - 1) .. state
        described, figures, count = described .. LETTERS[kind] .. row[2] .. "\n", figures .. shown, count + 1
        from = at + SIZES[kind]
        if more < balance * by then
          balance = more / by
        end
      end
      at = at + SIZES[kind]
    end
  end
  if count == 0 then
    return nil
  end
  balance = balance < huge and floor(balance) or NONE
  return spack("<BBBBddBBI2", 0, 0, 1, 1, now, balance, 1, count, #described) .. described .. figures, slice
end

-- As in lib/plain.lua.
function plain.answer(asked, keys, args)
  local name = args[3]
  if #keys ~= 1 or #args ~= 6 or args[5] ~= "" or #args[2] ~= 12 or #args[4] ~= 8 or find(name, "[^%w_.-]") then
    return nil
  end
  local readable, extra = pcall(munpack, args[6])
  local amount = sunpack("<d", args[4])
  if not readable or type(extra) ~= "table" or not extra.p or extra.m then
    return nil
  end
  opened[args[6]] = extra
  if not (amount > 0 and amount <= MAX_AMOUNT and amount % 1 == 0) then
    return nil
  end
  local rec = call("GET", keys[1])
  local values = { rec }
  if not rec or #rec < HEADER then
    return nil, values
  end
  local version, flags, fp, rev, seen = sunpack("<BBc8I4I6", rec)
  local blob = extra.p[fp]
  if version ~= LAYOUT or flags % BOOKS > FIRST or rev < sunpack("<I4", args[2]) or type(blob) ~= "string" then
    return nil, values
  elseif sub(sha1hex(blob), 1, 16) ~= hex(fp) then
    return nil, values
  end
  local now = clock(args[1])
  -- What a policy holds in the wrong place ends in an error here, and in a word about it on the long way.
  local good, data = pcall(munpack, blob)
  opened[blob] = good and data or nil
  local decided, answer, slice = false, nil, nil
  if good and data[1] == 2 and next(data[4]) then
    decided, answer, slice = pcall(charge_all, asked, rec, max(now, seen), data[5], name, amount, flags >= LISTED)
  end
  if not decided or not answer then
    return nil, values, now, true
  end
  if asked ~= CHECK then
    call("SETRANGE", keys[1], "14", slice)
  end
  return answer
end

-- A path takes the long way.
function plain.path(_, _, _, values, now)
  return nil, values, now
end

function plain.prepare() end
