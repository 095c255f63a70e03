#include "src/config_toml.h"
#include <algorithm>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <vector>

// The parser is compiled here, not taken from a shared library: it asserts what it goes on to check ("[#" and
// "a=[}" fail the assertion, then get a proper error), so with its assertions on a bad text ends the program,
// and with NDEBUG the compiler may take them for true and drop the check (3.0 to 3.4). Here they are nothing.
#undef NDEBUG
#undef TOML_SHARED_LIB
#undef TOML_HEADER_ONLY
#define TOML_HEADER_ONLY  1
#define TOML_ASSERT(expr) static_cast<void>(0)
#include <toml++/toml.h>

// toml++ stores a.b.c as nested tables and frees them by recursion: 200,000 parts in one key overflow its
// stack (seen with 3.3). Its own bound on depth is for arrays and inline tables only.
static constexpr int MAX_KEY_PARTS = 16;

struct leaf {
  std::string key;
  const toml::node *node;
};

struct config_toml {
  toml::table table;
  std::vector<leaf> leaves;
};

// Past the string that opens at text[i], or past the end of its line if it does not close there.
static size_t skip_string(std::string_view text, size_t i) {
  const char quote = text[i];
  const std::string_view triple(quote == '"' ? "\"\"\"" : "\'\'\'");
  const bool multi_line = text.substr(i, 3) == triple;
  for (i += multi_line ? 3 : 1; i < text.size(); i++) {
    if (text[i] == '\\' && quote == '"')
      i++;
    else if (!multi_line && (text[i] == quote || text[i] == '\n'))
      return i + 1;
    else if (multi_line && text.substr(i, 3) == triple) {
      i += 3; // up to two quotes more may belong to the content: they stand before the three that close
      for (int more = 0; more < 2 && i < text.size() && text[i] == quote; more++) i++;
      return i;
    }
  }
  return text.size();
}

// The line of the first key with too many parts, or 0. It reads strings and comments as TOML does, so it can
// differ from the parser only behind a syntax error, where the parser stops.
static int line_of_deep_key(std::string_view text) {
  int parts = 1;
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (c == '#')
      i = std::min(text.find('\n', i), text.size());
    else if (c == '"' || c == '\'')
      i = skip_string(text, i);
    else {
      if (c == '.')
        parts++;
      else if (std::string_view("\n=,[]{}").find(c) != std::string_view::npos)
        parts = 1;
      if (parts > MAX_KEY_PARTS) return 1 + static_cast<int>(std::count(text.data(), text.data() + i, '\n'));
      i++;
    }
  }
  return 0;
}

static std::string key_part(std::string_view part) {
  auto bare = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  };
  if (!part.empty() && std::all_of(part.begin(), part.end(), bare)) return std::string(part);
  std::string quoted = "\"";
  for (char c : part) quoted += static_cast<unsigned char>(c) < 0x20 || c == 0x7f || c == '"' ? '?' : c;
  return quoted + '"';
}

static void collect(std::vector<leaf> &leaves, const toml::table &table, const std::string &prefix) {
  for (auto &&[key, node] : table) {
    std::string name = prefix + key_part(key.str());
    const toml::table *inner = node.as_table();
    if (inner && !inner->empty())
      collect(leaves, *inner, name + '.');
    else
      leaves.push_back({std::move(name), &node});
  }
}

static void view(toml_value *out, const toml::node &node) {
  *out = toml_value{};
  out->line = static_cast<int>(node.source().begin.line);
  out->node = &node;
  if (auto s = node.as_string()) {
    out->kind = TOML_STRING;
    out->text = s->get().data();
    out->length = s->get().size();
  } else if (auto i = node.as_integer()) {
    out->kind = TOML_INTEGER;
    out->integer = i->get();
  } else if (auto f = node.as_floating_point()) {
    out->kind = TOML_FLOAT;
    out->real = f->get();
  } else if (auto b = node.as_boolean()) {
    out->kind = TOML_BOOL;
    out->flag = b->get();
  } else if (auto a = node.as_array()) {
    out->kind = TOML_ARRAY;
    out->count = a->size();
  } else if (auto t = node.as_table()) {
    out->kind = TOML_TABLE;
    out->count = t->size();
  } else
    out->kind = TOML_DATE;
}

static bool refuse(toml_fault *fault, int line, std::string_view text) {
  fault->line = line;
  std::snprintf(fault->text, sizeof fault->text, "%.*s", static_cast<int>(std::min<size_t>(text.size(), 200)),
                text.data());
  for (char *c = fault->text; *c; c++)
    if (static_cast<unsigned char>(*c) < 0x20 || *c == 0x7f) *c = ' ';
  return false;
}

bool config_toml_parse(config_toml **out, toml_fault *fault, const char *text, size_t length) {
  *out = nullptr;
  try {
    const std::string_view document(text, length);
    if (int line = line_of_deep_key(document)) return refuse(fault, line, "a key has more than 16 parts");
    auto *t = new config_toml;
    *out = t;
    t->table = toml::parse(document, std::string_view());
    collect(t->leaves, t->table, "");
    std::stable_sort(t->leaves.begin(), t->leaves.end(), [](const leaf &a, const leaf &b) {
      return a.node->source().begin < b.node->source().begin;
    });
    return true;
  } catch (const toml::parse_error &e) {
    refuse(fault, static_cast<int>(e.source().begin.line), e.description());
  } catch (const std::bad_alloc &) {
    refuse(fault, 1, "out of memory");
  } catch (const std::exception &e) {
    refuse(fault, 1, e.what());
  } catch (...) {
    refuse(fault, 1, "cannot be read");
  }
  delete *out;
  *out = nullptr;
  return false;
}

void config_toml_close(config_toml *t) {
  delete t;
}

size_t config_toml_count(const config_toml *t) {
  return t->leaves.size();
}

const char *config_toml_key(const config_toml *t, size_t i) {
  return t->leaves[i].key.c_str();
}

void config_toml_value(toml_value *out, const config_toml *t, size_t i) {
  view(out, *t->leaves[i].node);
}

void config_toml_element(toml_value *out, const toml_value *array, size_t i) {
  view(out, *static_cast<const toml::node *>(array->node)->as_array()->get(i));
}
