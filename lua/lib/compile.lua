-- The plain case of one policy and one set of cost names, written out as a function of its own: every
-- offset, limit and period a constant, the states read by one unpack, the new ones written by one pack and
-- the answer by another. It decides nothing in a way of its own: where a pool's period has ended or anything
-- else is out of the ordinary, it returns nil, having done nothing, and the call takes the long way. Where it
-- is only buckets that an amount does not fit, another such function answers.
--
-- Its text consists of words of this file and of whole numbers; names and packed bytes come in as values.
-- @gives compile

local compile = {}

local MOST_LIMITS, MOST_NAMES = 8, 8 -- a function has 250 registers
-- Besides what plain.answer is asked for: the answer of buckets that refuse; a charge that is held; the end of a hold.
local REFUSAL, RESERVE, COMMIT = 0, 4, 5
local UNTOUCHED = ("\0"):rep(23) -- drawn, over, carried and marks of a pool that has none
local OPENING, REFUSED = "\0\0\1\1", "\0\4\0\1" -- status, code OK or RATE_LIMITED, allowed, one section

local function number(n)
  return n < 0 and format("(%.0f)", n) or format("%.0f", n)
end

-- Whether every limit that a shape reaches has a plain case that can be written out.
function compile.can(shape)
  if shape.count > MOST_LIMITS or shape.names > MOST_NAMES then
    return false
  end
  for t = 1, shape.count do
    local L = shape[t].limit
    if L.kind == FLAG or L.kind == SLOTS or L.limit == 0 then
      return false
    end
  end
  return true
end

-- The sum of the amounts that reach a limit; `letter` is what they are called by.
local function cost(target, letter)
  local sum = {}
  for i, term in ipairs(target.terms or { { target.term, target.factor } }) do
    sum[i] = letter .. term[1] .. (term[2] == 1 and "" or " * " .. number(term[2]))
  end
  return concat(sum, " + ")
end

-- What reads a cost's amounts, and refuses those that the long way has to look at: 0, and what is no amount.
local function amounts_code(count)
  if count == 1 then
    return "local a1 = small[amounts] or plain_amount(amounts) if not a1 then return end"
  end
  local names, tests = {}, {}
  for j = 1, count do
    names[j] = "a" .. j
    tests[j] = format("a%d > 0 and a%d <= %.0f and a%d %% 1 == 0", j, j, MAX_AMOUNT, j)
  end
  return format('if #amounts ~= %d then return end\nlocal %s = sunpack("<%s", amounts)\nif not (%s) then return end',
    8 * count, concat(names, ", "), ("d"):rep(count), concat(tests, " and "))
end

-- Adds what one limit does to `code`; `asked` may be REFUSAL. Returns how its kind does it, a substitution for
-- its constants, the expression for what one call more could spend (nil: no bound), and that of what was used.
-- `granted`: a pool with grants.
local function limit_code(code, t, target, asked, granted)
  local L = target.limit
  local kind, number_of = KINDS[L.kind], tostring(t)
  local now_ticks, tick = "now", L.tick and number(L.tick)
  if L.tick and L.tick > 1 then
    now_ticks = format("((now - now %% %s) / %s)", tick, tick)
  end
  local unlimited = L.limit == NONE
  local charging, ending = asked == CHARGE or asked == RESERVE, asked == COMMIT
  local constants = {
    limit = number(L.limit), capacity = L.capacity and number(L.capacity), period = L.period and number(L.period),
    tick = tick, now = now_ticks, never = number(NEVER), none = number(NONE), beyond = number(-NONE),
    first = L.kind == POOL and not unlimited and number(next_mark(L, 0, L.limit)) or "0",
    open = charging and kind.open_charge or ending and "return" or kind.open_check,
    index = number(L.index + 128), bounded = tostring(not unlimited),
  }
  local function fill(text)
    -- `open` holds constants of its own. One tick is one ms, as a rule.
    local filled = text:gsub("{(%l+)}", constants):gsub("{(%l+)}", constants):gsub("#", number_of)
    return (filled:gsub(" %* 1(%D)", "%1"):gsub(" %* 1$", ""))
  end
  local lines = {}
  local function add(text)
    lines[#lines + 1] = text
  end
  local left, capacity, says = kind.left, L.capacity or L.limit, kind.say
  add("local c# = " .. cost(target, "a"))
  if ending then
    add("local b# = " .. cost(target, "h") .. " - c#")
    add("if b# > 0 then changed = true end")
    add(kind.before or "")
  end
  if granted then
    constants.limit = unlimited and "0" or constants.limit
    local knows, low, below = threshold.granted(L)
    constants.low, constants.below, says = number(low), number(below), knows and GRANTED.say_more or GRANTED.say
    add(GRANTED.load)
    left, capacity = GRANTED.left, huge
  elseif threshold.carries(L) then
    add(kind.load_carried)
    left, capacity = "k# - u#", huge
  else
    add(kind.load)
  end
  if L.kind == POOL and (unlimited or capacity > MAX_COUNTER) then
    add("if u# + c# " .. (granted and "+ d# " or "") .. "> " .. number(MAX_COUNTER) .. " then return end")
  end
  if granted then
    add(charging and GRANTED.charge or GRANTED.check)
  elseif charging then
    add("u# = u# + c#")
  elseif ending then
    add(kind.back)
    add("u# = u# - b# if u# < 0 then return end")
  end
  if charging and L.kind == POOL and not unlimited then
    add(says)
  end
  if kind.weigh then
    add(kind.weigh)
  end
  add("local l# = " .. (unlimited and "{none}" or left))
  if asked == REFUSAL then
    add("local y#, q# = 1, {none}")
    if not unlimited then
      add("if l# < 0 then l# = 0 end")
    end
    if L.kind > POOL then
      add("if c# > l# then y#, any = 0, true " .. kind.retry .. " end")
    elseif not unlimited and L.overage ~= NONE then
      add("if c# > l# + " .. number(L.overage) .. " then return end")
    end
  elseif not unlimited then
    local least = (charging or ending) and "0" or "c#"
    add("if l# < " .. least .. " then return refuse and refuse(rec, now, amounts) end")
  end
  if kind.late then
    add(kind.late)
  end
  code[#code + 1] = fill(concat(lines, "\n"))
  local used = fill(granted and GRANTED.used or kind.used)
  if target.first == 0 or unlimited or L.overage == NONE then
    return kind, fill, nil, used
  end
  local more = L.overage > 0 and fill("(l# + " .. number(L.overage) .. ")") or fill("l#")
  if target.first > 1 then
    local by = number(target.first)
    more = format("(%s - %s %% %s) / %s", more, more, by, by)
  end
  return kind, fill, more, used
end

-- The head of the answer where a pool has grants, and that pool's number; nil: no pool that is charged has.
local function granted_head(shape, level, granted)
  local names, number_of = {}, nil
  for t = 1, shape.count do
    local L = shape[t].limit
    local mine = granted and L.kind == POOL and granted == L.index
    names[t] = (mine and "P" or LETTERS[L.kind]) .. L.name .. "\n"
    number_of = mine and t or number_of
  end
  local described = concat(names)
  return number_of and spack("<BBI2", level or 1, shape.count, #described) .. described, number_of
end

-- What lets a record pass as one of the caller's catalog: brought to its revision, and of the group to join
-- or the very policy where the call says so, which concerns the root.
local function check_code(parsed, level, charging, expires)
  local tests = { "rev < context.rev" }
  if level and level > 1 then
    tests[2] = "context.pinned"
  else
    tests[2] = "not (context.plain or context.first == FP and context.pinned or groups[context.join])"
  end
  if level then
    tests[3] = "seen > now"
  end
  if expires and charging then
    tests[#tests + 1] = "expires < now + " .. number(parsed.forgettable)
  end
  return (level and "" or "if seen > now then now = seen end\n") .. "if " .. concat(tests, " or ") .. " then return end"
end

-- The text of the function, and the values that come into it: packed bytes, then what knows of marks.
local function write(parsed, shape, asked, flags, level, granted, bare)
  local expires, held = has(flags, TTL), has(flags, HOLDS)
  local reserving, ending, refusal = asked == RESERVE, asked == COMMIT, asked == REFUSAL
  local charging = asked == CHARGE or reserving
  local code, packed, marked, marks = {}, {}, {}, {}
  local reads, read_names = { "<I4I6" }, { "rev, seen" }
  local writes, write_values = { bare and "<c14I6" or "<I6" }, { bare and "rec, now" or "now" }
  if reserving then
    writes[1], write_values[1] = "<c2c12I6", "FLAGGED, sub(rec, 3, 14), now"
  end
  local answers, balance, known_by = {}, {}, {}
  local at, before = HEADER + 1, shape.count > 0 and policy.head(shape, level or 1) or ""
  local head, source = granted_head(shape, level, granted)
  before = head or before
  for t = 1, shape.count do
    local target = shape[t]
    local L = target.limit
    local kind, fill, more, used = limit_code(code, t, target, asked, t == source)
    local does, knows = kind, nil
    if t == source then
      does = GRANTED
      knows = threshold.granted(L)
    elseif L.kind == POOL then
      knows = (threshold.carries(L) and threshold.carried or threshold.of)(L)
    end
    if knows then
      marked[#marked + 1], marks[#marks + 1] = fill(", M#"), knows
    end
    if L.offset > at then
      local gap = "c" .. number(L.offset - at)
      reads[#reads + 1], read_names[#read_names + 1] = gap, "gap" .. t
      writes[#writes + 1], write_values[#write_values + 1] = gap, "gap" .. t
    end
    at = L.offset + L.size
    reads[#reads + 1], read_names[#read_names + 1] = does.format, fill(does.reads)
    local brief = not (bare or source or ending) and t == shape.count and kind.brief
    writes[#writes + 1] = brief or does.format
    local values = ending and kind.unless_kept or brief and kind.brief_writes or does.writes
    write_values[#write_values + 1] = fill(values)
    if refusal then
      packed[t], before = before, ""
      local limit = number(L.limit)
      answers[t] = fill("P#, y#, " .. limit .. ", " .. used .. ", l#, 0, 0, " .. kind.resets .. ", q#")
    else
      -- What never differs is packed now: the end of what stands before, and the limit.
      packed[t] = before .. spack("<Bd", 1, L.limit)
      before = spack("<d", NONE)
      answers[t] = fill("P#, " .. used .. ", l#, 0, " .. ((charging or ending) and "c#" or "0") .. ", " .. kind.resets)
    end
    balance[#balance + 1] = more
    known_by[t] = fill(kind.mark)
  end
  packed[shape.count + 1] = before
  local figures_behind = ""
  -- What stands behind the states that are charged; `kept`: it is written again, unchanged.
  local function pass(pattern, names, kept)
    reads[#reads + 1], read_names[#read_names + 1] = pattern, names
    if kept then
      writes[#writes + 1], write_values[#write_values + 1] = pattern, names
    end
  end
  local to_the_end = bare or source or ending
  if parsed.tail > at and (to_the_end or granted or expires or held) then
    pass("c" .. number(parsed.tail - at), "gap", to_the_end)
  end
  if expires then
    pass("I6", "expires")
  end
  if held then
    pass("I6", "due", bare or source)
    table.insert(code, 1, "if now >= due then return end") -- something comes back first
  end
  if reserving and not held then
    writes[#writes + 1], write_values[#write_values + 1] = "I6", "expiry"
  end
  if source then
    pass("BBBI6I7I7", "gn, gi, gh, gu, gx, gy", true)
    figures_behind = "dd"
    -- Which grant a charge came from is for the long way to note.
    table.insert(code, 1, "if gn ~= 1 " .. (bare and "or gh > 0 " or "") .. "then return end")
  elseif granted then
    -- Those of other records may be for a pool that is charged here.
    pass("BB", "gn, gi")
    table.insert(code, 1, format("if gn ~= 1 or gi %% 128 ~= %d then return end", granted))
  end
  local text = { "local call, sunpack, spack, sub, mpack, small, plain_amount, groups, FP, OPENING, UNTOUCHED, refuse" }
  text[1] = text[1] .. ", P1"
  for t = 2, #packed do
    text[1] = text[1] .. ", P" .. t
  end
  local function add(line, ...)
    text[#text + 1] = format(line, ...)
  end
  local lengths
  if reserving or ending then
    local words
    words, lengths = hold.words(shape)
    marked[#marked + 1], marks[#marks + 1] = ", FLAGGED", char(LAYOUT, held and flags or flags + HOLDS)
    for w = 1, #words do
      marked[#marked + 1], marks[#marks + 1] = ", W" .. w, words[w]
    end
  end
  text[1] = text[1] .. concat(marked) .. " = ..."
  if refusal then
    add("return function(rec, now, amounts)")
  else
    if ending then
      add("return function(rec, now, context, amounts, raw, all_back)")
    elseif reserving then
      add("return function(rec, now, context, amounts, ttl)")
    else
      add("return function(%srec, now, context, amounts)", (level or bare) and "" or "key, ")
    end
    if granted then
      add("if #rec < %d then return end", parsed.tail + 22 + (held and 6 or 0))
    else
      -- Books may stand behind the state, of any length.
      local size = parsed.tail - 1 + (expires and 6 or 0) + (held and 6 or 0)
      add("if #rec %s %d then return end", has(flags, BOOKS) and "<=" or "~=", size)
    end
  end
  if ending then
    add("%s", holdcode.amounts(shape, lengths))
  elseif shape.count > 0 then
    add("%s", amounts_code(shape.names))
  end
  add('local %s = sunpack("%s", rec, 11)', concat(read_names, ", "), concat(reads))
  add("%s", refusal and "local any" or check_code(parsed, level, charging, expires))
  if reserving then
    add("local expiry = now + ttl")
  end
  if ending then
    add("local changed = false")
  end
  add("%s", concat(code, "\n"))
  if reserving and held then
    add("if expiry < due then due = expiry end")
  end
  add("local balance = %s", balance[1] or number(level and -NONE or NONE))
  for b = 2, #balance do
    add("local more = %s if more < balance then balance = more end", balance[b])
  end
  local slice = format('spack("%s", %s)', concat(writes), concat(write_values, ", "))
  local figures = ("dddddc0"):rep(shape.count)
  answers[#answers + 1] = "P" .. #packed
  if source then
    answers[#answers + 1] = format("d%d, gx + gy", source)
  end
  if refusal then
    figures = ("c0Bddddddd"):rep(shape.count) .. "c0"
    add('if any then return spack("<c4dd%s", OPENING, now, balance, %s) end', figures, concat(answers, ", "))
  elseif level then
    add('return spack("<c0%s", %s), balance, %s', figures .. figures_behind, concat(answers, ", "), slice)
  else
    local rest = ""
    if ending then
      add("local slice = %s", slice)
      add("if all_back then return all_back, changed, slice, now, due, expiry end")
      rest = ", changed, slice, now, due, expiry, " .. holdcode.kept(shape, add)
    elseif reserving then
      rest = format(", %s, %s, expiry", slice, holdcode.entry(shape, known_by))
    elseif charging and not bare then
      add('call("SETRANGE", key, "14", %s)', slice)
    elseif bare then
      local size = parsed.tail + (held and 6 or 0) + (source and 23 or 0)
      rest = ", " .. slice .. (has(flags, BOOKS) and format(" .. sub(rec, %d)", size) or "") .. ", now"
    end
    figures = figures .. figures_behind
    add('return spack("<c4ddc0%s", OPENING, now, balance, %s)%s', figures, concat(answers, ", "), rest)
  end
  add("end")
  for _, value in ipairs(marks) do
    packed[#packed + 1] = value
  end
  return concat(text, "\n"), packed
end

-- The amount that 8 bytes hold, nil if it is 0 or none; few and small ones are kept, unpacked and checked.
local small = {}
local function plain_amount(text)
  local amount = #text == 8 and sunpack("<d", text) or 0
  if not (amount > 0 and amount <= MAX_AMOUNT and amount % 1 == 0) then
    return nil
  end
  if amount <= 64 then
    small[text] = amount
  end
  return amount
end

local function make(parsed, shape, asked, flags, level, refuse, granted, bare)
  local text, packed = write(parsed, shape, asked, flags, level, granted, bare)
  local chunk = loadstring(text, "=meterd_plain")
  local opening = asked == REFUSAL and REFUSED or OPENING
  return chunk
    and chunk(
      call, sunpack, spack, sub, mpack, small, plain_amount, parsed.groups, parsed.fp, opening, UNTOUCHED, refuse,
      spread(packed)
    )
end

-- The function for a shape that compile.can; nil where the server compiles nothing. `asked`: it charges, reports
-- (charges, and never refuses), or says what a charge would come to. `flags`: those of the record.
-- Without a level it answers for a single record, writes it, and refuses where buckets do:
--   f(key, record, now, context, amounts) returns the answer; nil: not plain.
-- With one, it leaves to the caller what a path has to have together:
--   f(record, now, context, amounts) returns the section, the balance (2^53: no bound), the bytes from 15 on.
-- `granted`: the index of the one pool of the record that has grants. `bare`: of a single record, whose writing is
-- the caller's, and which refuses nothing:
--   f(record, now, context, amounts) returns the answer, the new record, and the instant.
function compile.form(parsed, shape, asked, flags, level, granted, bare)
  local refuse
  if asked == REPORT then
    asked = CHARGE
  elseif asked < RESERVE and not (level or granted or bare) then
    refuse = make(parsed, shape, REFUSAL, 0, nil, nil)
  end
  return make(parsed, shape, asked, flags, level, refuse, granted, bare)
end

-- The functions for reservations: on a record without open holds (`flags` are its own), on one with some,
--   f(record, now, context, amounts, ttl) returns the answer, the new record, the entry of the hold, its expiry;
-- and to end one that was made by these,
--   f(record, now, context, amounts, entry, all_back) returns the answer (`all_back`, if that is given), whether
--   states change, the record's bytes from 15 on up to their end, the instant, when the first hold of the record
--   expires, when this one does, and for the note what was used, by cost name and by limit.
function compile.holding(parsed, shape, flags)
  return make(parsed, shape, RESERVE, flags, nil, nil, nil, true),
    make(parsed, shape, RESERVE, flags + HOLDS, nil, nil, nil, true),
    make(parsed, shape, COMMIT, flags + HOLDS)
end
