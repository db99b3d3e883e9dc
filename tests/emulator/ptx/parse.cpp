// SPDX-License-Identifier: MIT
// Reads what nvcc writes, not all of PTX: what is not known is an error.
#include <cstring>
#include <fstream>
#include <iomanip>
#include <map>
#include <sstream>
#include <stdexcept>

#include "common/check.h"
#include "ptx/program.h"

namespace openseg::ptx {
namespace {

constexpr std::string_view spaces = " \t\r\n";

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(spaces);
  return begin == text.npos ? std::string_view()
                            : text.substr(begin, text.find_last_not_of(spaces) - begin + 1);
}

// Of the text, with as many characters.
std::string without_comments(std::string text) {
  for (size_t at = 0; (at = text.find("//", at)) != text.npos;) {
    const size_t end = text.find('\n', at);
    text.replace(at, end - at, std::string(end - at, ' '));
  }
  return text;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(trimmed(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  return parts;
}

class Reader {
 public:
  Reader(std::string name, std::string_view text, int line, const Files& files)
      : text_(text), line_(line), files_(files) {
    program_.name = std::move(name);
  }

  Program read() {
    for (const char* const special : {"%tid.x", "%ntid.x", "%ctaid.x", "%ctaid.y", "%ctaid.z",
                                      "%nctaid.x", "%nctaid.y", "%nctaid.z"}) {
      declare(special, 4);
      program_.special[special] = registers_[special];
    }
    read_head();
    while (read_statement()) {
    }
    for (auto& [instruction, label] : branches_) {
      check(labels_.contains(label), "no label ", label);
      program_.instructions[instruction].target = labels_[label];
    }
    for (size_t i = 0; i < program_.instructions.size(); ++i) {
      program_.instructions[i].operands = program_.operands[i].data();
      program_.instructions[i].operand_count = (int)program_.operands[i].size();
    }
    return std::move(program_);
  }

 private:
  template <typename... Parts>
  void check(bool holds, const Parts&... parts) const {
    OPENSEG_CHECK(holds, "ptx: line ", line_, ": ", parts...);
  }

  // The text up to a character, which is passed.
  std::string_view take_until(char end) {
    const size_t length = text_.find(end);
    check(length != text_.npos, "no '", end, "' follows");
    const std::string_view taken = text_.substr(0, length);
    skip(length + 1);
    return taken;
  }

  void skip(size_t length) {
    for (const char c : text_.substr(0, length)) {
      line_ += c == '\n';
    }
    text_.remove_prefix(length);
  }

  void skip_spaces() { skip(std::min(text_.find_first_not_of(spaces), text_.size())); }

  // One parameter, of so many bytes; then directives.
  void read_head() {
    const std::string_view parameter = trimmed(take_until(')'));
    const size_t bracket = parameter.rfind('[');
    check(bracket != parameter.npos && parameter.find(',') == parameter.npos,
          "not one parameter that is an array: ", parameter);
    program_.parameter_bytes = std::stoll(std::string(parameter.substr(bracket + 1)));
    const size_t name = parameter.find_last_of(spaces) + 1;
    symbols_[std::string(parameter.substr(name, bracket - name))] = 0;
    const std::string_view directives = take_until('{');
    constexpr std::string_view limit = ".maxntid ";
    if (const size_t at = directives.find(limit); at != directives.npos) {
      program_.max_threads = std::stoi(std::string(directives.substr(at + limit.size())));
    }
  }

  // Whether the kernel goes on. Names of inner scopes are of the same registers each time.
  bool read_statement() {
    skip_spaces();
    check(!text_.empty(), "the kernel does not end");
    const char first = text_[0];
    if (first == '{' || first == '}') {
      skip(1);
      depth_ += first == '{' ? 1 : -1;
      return depth_ >= 0;
    }
    if (text_.starts_with(".loc")) {
      read_source(take_until('\n'));
      return true;
    }
    const size_t end = text_.find_first_of(";:{");
    check(end != text_.npos, "a statement does not end");
    if (text_[end] == ':' && text_.substr(0, end).find('.') == std::string_view::npos) {
      labels_[std::string(take_until(':'))] = (int)program_.instructions.size();
      return true;
    }
    const int line = line_;
    const std::string_view statement = trimmed(take_until(';'));
    if (first == '.') {
      read_directive(statement);
    } else {
      read_instruction(statement, line);
    }
    return true;
  }

  // .loc FILE LINE COLUMN, function_name NAME, inlined_at FILE LINE COLUMN
  void read_source(std::string_view statement) {
    std::string source;
    for (const std::string_view part : split(statement, ',')) {
      if (!part.starts_with("function_name")) {
        std::istringstream words{std::string(part)};
        std::string word;
        int file = 0;
        int line = 0;
        words >> word >> file >> line;
        check(files_.contains(file), "no file of number ", file);
        source += (source.empty() ? "" : ",") + files_.at(file) + ":" + std::to_string(line);
      }
    }
    source_ = *program_.sources.insert(source).first;
  }

  void read_directive(std::string_view statement) {
    if (statement.starts_with(".pragma")) {
      return;
    }
    constexpr std::string_view start = ".reg .";
    check(statement.starts_with(start), "unknown directive ", statement);
    statement.remove_prefix(start.size());
    const size_t space = statement.find_first_of(spaces);
    const std::string_view type = statement.substr(0, space);
    check(type == "pred" || type.size() >= 2, "unknown type ", type);
    const int bytes = type == "pred" ? 0 : std::stoi(std::string(type.substr(1))) / 8;
    for (const std::string_view name : split(statement.substr(space), ',')) {
      const size_t bracket = name.find('<');
      if (bracket == name.npos) {
        declare(std::string(name), bytes);
        continue;
      }
      const int count = std::stoi(std::string(name.substr(bracket + 1)));
      for (int i = 0; i < count; ++i) {
        declare(std::string(name.substr(0, bracket)) + std::to_string(i), bytes);
      }
    }
  }

  void declare(const std::string& name, int bytes) {
    constexpr int64_t unit = 64;
    const int64_t all = bytes == 0 ? unit : lane_count * (bytes == 8 ? 8 : 4);
    registers_[name] = {(int32_t)program_.register_bytes, false, bytes == 8};
    program_.register_bytes += all;
  }

  Operand constant(uint64_t value) {
    const auto [found, is_new] =
        constants_.emplace(value, Operand{(int32_t)(program_.constants.size() * 8), true, false});
    if (is_new) {
      const uint64_t pair = value << 32 | (uint32_t)value;
      program_.constants.insert(program_.constants.end(), lane_count, value);
      program_.constants.insert(program_.constants.end(), lane_count / 2, pair);
    }
    return found->second;
  }

  Operand operand(const std::string& name) {
    if (const auto found = registers_.find(name); found != registers_.end()) {
      return found->second;
    }
    if (const auto found = symbols_.find(name); found != symbols_.end()) {
      return constant(found->second);
    }
    if (name.find("openseg_shared_memory") != name.npos) {
      return constant(shared_start);
    }
    const bool is_float = name.starts_with("0f") || name.starts_with("0d");
    char* end = nullptr;
    const std::string digits = is_float ? name.substr(2) : name;
    const uint64_t value = is_float         ? std::strtoull(digits.c_str(), &end, 16)
                           : name[0] == '-' ? (uint64_t)std::strtoll(digits.c_str(), &end, 0)
                                            : std::strtoull(digits.c_str(), &end, 0);
    check(*end == 0, "unknown operand ", name);
    return constant(value);
  }

  void read_instruction(std::string_view statement, int line) {
    Instruction instruction;
    instruction.line = line;
    if (statement[0] == '@') {
      const size_t space = statement.find_first_of(spaces);
      std::string_view name = statement.substr(1, space - 1);
      instruction.has_guard = true;
      instruction.guard = name[0] != '!';
      name.remove_prefix(instruction.guard ? 0 : 1);
      instruction.guard_predicate = operand(std::string(name));
      statement = trimmed(statement.substr(space));
    }
    const size_t length = std::min(statement.find_first_of(" \t"), statement.size());
    std::string name(statement.substr(0, length));
    if (name.starts_with("mov.") && statement.find('{') != statement.npos) {
      name += trimmed(statement.substr(length))[0] == '{' ? " apart" : " together";
    }
    const auto found = meanings().find(name);
    check(found != meanings().end(), "unknown instruction ", name);
    instruction.name = found->first;
    instruction.kind = found->second.kind;
    instruction.execute = found->second.execute;
    instruction.source = source_;
    check(!instruction.has_guard || instruction.kind == Kind::branch, "a guard of ", name);
    std::vector<Operand> operands;
    if (instruction.kind == Kind::branch) {
      branches_.emplace_back(program_.instructions.size(), trimmed(statement.substr(length)));
    } else {
      operands = read_operands(statement.substr(length), instruction);
    }
    program_.instructions.push_back(instruction);
    program_.operands.push_back(std::move(operands));
  }

  // Of vectors, the parts; of addresses, what the offset is added to.
  std::vector<Operand> read_operands(std::string_view text, Instruction& instruction) {
    std::vector<Operand> operands;
    for (size_t at = 0; (at = text.find_first_not_of(" \t\r\n{},|]", at)) != text.npos;) {
      const bool is_address = text[at] == '[';
      at += is_address;
      const size_t end = std::min(text.find_first_of(" \t\r\n{},|]+", at), text.size());
      operands.push_back(operand(std::string(text.substr(at, end - at))));
      at = end;
      if (is_address && text[at] == '+') {
        instruction.offset = std::stoll(std::string(text.substr(at + 1)));
        at = text.find(']', at);
      }
    }
    return operands;
  }

  Program program_;
  std::string_view text_;
  int line_;
  int depth_ = 0;
  const Files& files_;
  std::string_view source_ = "?";
  std::unordered_map<std::string, Operand> registers_;
  std::unordered_map<std::string, uint64_t> symbols_;
  std::unordered_map<uint64_t, Operand> constants_;
  std::unordered_map<std::string, int> labels_;
  std::vector<std::pair<size_t, std::string>> branches_;
};

}  // namespace

Programs::Programs(const std::string& path) {
  std::ifstream file(path);
  OPENSEG_CHECK(file.good(), "ptx: cannot read ", path);
  std::ostringstream text;
  text << file.rdbuf();
  all_ = without_comments(text.str());
  const std::string_view all = all_;
  int line = 0;
  for (size_t at = 0, end; at < all.size(); at = end + 1) {
    end = std::min(all.find('\n', at), all.size());
    ++line;
    const std::string_view statement = trimmed(all.substr(at, end - at));
    constexpr std::string_view entry = ".entry ";
    if (statement.starts_with(".version")) {
      files_.emplace_back();
    } else if (statement.starts_with(".file")) {
      std::istringstream words{std::string(statement)};
      std::string word, path;
      int number = 0;
      words >> word >> number >> std::quoted(path);
      files_.back()[number] = path.substr(path.rfind('/') + 1);
    } else if (const size_t found = statement.find(entry); found != statement.npos) {
      const size_t name = found + entry.size();
      const size_t bracket = statement.find('(');
      OPENSEG_CHECK(bracket != statement.npos, "ptx: line ", line, ": an entry without '('");
      const size_t parameters = statement.data() + bracket + 1 - all.data();
      texts_[std::string(statement.substr(name, bracket - name))] = {all.substr(parameters), line,
                                                                     &files_.back()};
    }
  }
}

Program& Programs::find(const std::string& name) {
  auto found = programs_.find(name);
  if (found == programs_.end()) {
    const auto text = texts_.find(name);
    OPENSEG_CHECK(text != texts_.end(), "ptx: no kernel ", name);
    Program program =
        Reader(name, text->second.text, text->second.line, *text->second.files).read();
    found = programs_.emplace(name, std::move(program)).first;
  }
  return found->second;
}

std::string Programs::take_counts() {
  std::ostringstream rows;
  for (auto& [kernel, program] : programs_) {
    std::map<std::pair<std::string_view, std::string_view>, int64_t> sums;
    for (Instruction& instruction : program.instructions) {
      sums[{instruction.source, instruction.name}] += instruction.count;
      instruction.count = 0;
    }
    for (const auto& [what, count] : sums) {
      if (count > 0) {
        rows << kernel << '\t' << what.first << '\t' << what.second << '\t' << count << '\n';
      }
    }
  }
  return rows.str();
}

}  // namespace openseg::ptx
