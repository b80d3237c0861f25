// The tables of a tokenizer: read, bounds and all, tried on the texts that came with them, and followed.
#include "text_tables.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <memory>
#include <queue>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "failure.h"
#include "sha256.h"
#include "utf8.h"

namespace mra::serving {
namespace {

using detail::append_utf8;
using detail::next_code;
using Ids = std::vector<std::int64_t>;

constexpr char kMagic[] = "MRATEXT\x01";
constexpr std::size_t kMagicBytes = 8;
constexpr std::int64_t kMaxBytes = std::int64_t{1} << 30;
constexpr std::uint32_t kCodePoints = 0x110000;
constexpr std::uint32_t kNone = 0xFFFFFFFF;
constexpr const char* kMend = "Copy the bundle again, or write it again with `mra-export bundle`.";

// What becomes of a code point before a text is split.
enum Action : std::uint8_t { kKeep = 0, kDrop = 1, kBlank = 2, kSpaced = 3, kMapped = 4, kBarrier = 5 };
// Where WordPiece's text is split: kLeftOut is between words, kAlone a word of its own. For BPE: kLeftOut is a blank.
enum Class : std::uint8_t { kInside = 0, kLeftOut = 1, kAlone = 2, kLetter = 2, kDigit = 3 };

// Reads numbers and texts, and refuses what is not there.
class Reader {
 public:
  Reader(const std::string& path, const std::string& bytes) : path_(path), bytes_(bytes) {}

  [[noreturn]] void refuse(const std::string& what) const { fail(Code::kInput, path_ + " " + what + ". " + kMend); }

  std::string_view raw(std::size_t size) {
    if (size > bytes_.size() - at_) refuse("was cut off");
    at_ += size;
    return std::string_view(bytes_).substr(at_ - size, size);
  }
  std::uint32_t number() {
    const std::string_view four = raw(4);
    const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(four[i])); };
    return byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24;
  }
  // How many things of at least `least` bytes follow: no more than the file can hold.
  std::uint32_t count(std::size_t least) {
    const std::uint32_t many = number();
    if (many > (bytes_.size() - at_) / least) refuse("was cut off");
    return many;
  }
  std::uint32_t below(std::uint32_t limit, const char* what) {
    const std::uint32_t value = number();
    if (value >= limit) refuse(std::string("holds ") + what + " " + std::to_string(value) + ", which cannot be");
    return value;
  }
  std::string_view text() { return raw(number()); }
  Ids ids(std::uint32_t vocabulary) {
    Ids out(count(4));
    for (std::int64_t& id : out) id = below(vocabulary, "the token id");
    return out;
  }
  bool is_over() const { return at_ == bytes_.size(); }

 private:
  const std::string& path_;
  const std::string& bytes_;
  std::size_t at_ = 0;
};

// Unicode's White_Space, which does not change: what lstrip and rstrip of an added token take.
bool is_blank(std::uint32_t code) {
  return (code >= 9 && code <= 13) || code == 0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
         code == 0x3000;
}

// Pieces, found byte by byte: an open-addressing table of (node, byte) -> node.
class Trie {
 public:
  void add(std::string_view piece, std::uint32_t id) {
    std::uint32_t node = 0;
    for (const char c : piece) node = child(node, static_cast<unsigned char>(c));
    values_[node] = id;
  }

  // The id of the longest piece at the beginning of `text`, and its bytes; kNone where there is none.
  std::uint32_t longest(std::string_view text, std::size_t* bytes) const {
    std::uint32_t node = 0, found = kNone;
    for (std::size_t i = 0; i < text.size(); ++i) {
      node = find(node, static_cast<unsigned char>(text[i]));
      if (node == 0) break;
      if (values_[node] == kNone) continue;
      found = values_[node];
      *bytes = i + 1;
    }
    return found;
  }
  bool empty() const { return values_.size() == 1; }

 private:
  static std::size_t hash(std::uint64_t key) { return static_cast<std::size_t>((key * 0x9E3779B97F4A7C15ULL) >> 20); }

  std::uint32_t find(std::uint32_t node, unsigned char byte) const {
    if (keys_.empty()) return 0;
    const std::uint64_t key = (std::uint64_t{node} << 8 | byte) + 1;
    for (std::size_t at = hash(key) & mask_;; at = (at + 1) & mask_) {
      if (keys_[at] == key) return nodes_[at];
      if (keys_[at] == 0) return 0;
    }
  }

  std::uint32_t child(std::uint32_t node, unsigned char byte) {
    if (const std::uint32_t known = find(node, byte); known != 0) return known;
    if (2 * values_.size() >= keys_.size()) grow();
    const auto made = static_cast<std::uint32_t>(values_.size());
    values_.push_back(kNone);
    put((std::uint64_t{node} << 8 | byte) + 1, made);
    return made;
  }

  void put(std::uint64_t key, std::uint32_t node) {
    std::size_t at = hash(key) & mask_;
    while (keys_[at] != 0) at = (at + 1) & mask_;
    keys_[at] = key;
    nodes_[at] = node;
  }

  void grow() {
    std::vector<std::uint64_t> keys(std::max<std::size_t>(64, keys_.size() * 2), 0);
    std::vector<std::uint32_t> nodes(keys.size(), 0);
    keys.swap(keys_);
    nodes.swap(nodes_);
    mask_ = keys_.size() - 1;
    for (std::size_t i = 0; i < keys.size(); ++i)
      if (keys[i] != 0) put(keys[i], nodes[i]);
  }

  std::vector<std::uint64_t> keys_;
  std::vector<std::uint32_t> nodes_;
  std::vector<std::uint32_t> values_{kNone};
  std::size_t mask_ = 0;
};

// Tokens that are found in the text itself, the leftmost first and of those at one place the longest.
class AddedTokens {
 public:
  struct Found {
    std::size_t begin = 0, end = 0;  // blanks that belong to it included
    std::uint32_t id = 0;
  };

  void add(std::uint32_t id, std::uint32_t flags, std::string_view text) {
    trie_.add(text, static_cast<std::uint32_t>(tokens_.size()));
    tokens_.push_back({id, flags});
    starts_[static_cast<unsigned char>(text[0])] = true;
  }
  bool empty() const { return tokens_.empty(); }

  // Calls `between` with what stands between tokens and `token` with their ids, in the text's order.
  template <typename Between, typename Token>
  void cut(std::string_view text, Between&& between, Token&& token) const {
    std::size_t done = 0;
    for (std::size_t at = 0; at < text.size();) {
      std::size_t bytes = 0;
      const std::uint32_t which = starts_[static_cast<unsigned char>(text[at])] ? trie_.longest(text.substr(at), &bytes) : kNone;
      if (which == kNone) {
        ++at;
        continue;
      }
      std::size_t begin = at, end = at + bytes;
      at = end;
      if (tokens_[which].flags & 2) begin = std::max(done, before_blanks(text, begin));
      if (tokens_[which].flags & 4) end = after_blanks(text, end);
      if (done < begin) between(text.substr(done, begin - done));
      token(tokens_[which].id);
      done = end;
    }
    if (done < text.size()) between(text.substr(done));
  }

 private:
  struct Token {
    std::uint32_t id, flags;
  };

  static std::size_t after_blanks(std::string_view text, std::size_t at) {
    for (std::size_t next = at; next < text.size(); at = next)
      if (!is_blank(next_code(text, &next))) break;
    return at;
  }
  static std::size_t before_blanks(std::string_view text, std::size_t at) {
    while (at > 0) {
      std::size_t start = at - 1;
      while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
      std::size_t next = start;
      if (!is_blank(next_code(text, &next))) break;
      at = start;
    }
    return at;
  }

  Trie trie_;
  std::vector<Token> tokens_;
  std::array<bool, 256> starts_{};
};

class TableEncoder : public TextEncoder {
 public:
  Status encode(const std::string_view* texts, std::size_t count, std::vector<Ids>* ids) const noexcept override {
    return guarded([&] {
      ids->assign(count, {});
      Work work;
      for (std::size_t i = 0; i < count; ++i) {
        encode_one(texts[i], &work);
        finish(work.ids, &(*ids)[i]);
      }
    });
  }

  void read(Reader* reader, const TextRequest& request) {
    vocabulary_ = static_cast<std::uint32_t>(std::min<std::int64_t>(request.vocab_size, kNone));
    max_length_ = request.max_length;
    cuts_left_ = request.cuts_left;
    before_ = reader->ids(vocabulary_);
    after_ = reader->ids(vocabulary_);
    if (static_cast<std::int64_t>(before_.size() + after_.size()) > max_length_)
      reader->refuse("puts " + std::to_string(before_.size() + after_.size()) + " special tokens around a text, more than the " +
                     std::to_string(max_length_) + " tokens of the longest");
    for (std::uint32_t left = reader->count(12); left > 0; --left) {
      const std::uint32_t id = reader->below(vocabulary_, "the token id"), flags = reader->below(8, "the flags");
      const std::string_view text = utf8(reader);
      if (text.empty()) reader->refuse("has an added token without text");
      (flags & 1 ? normalized_ : raw_).add(id, flags, text);
    }
    read_ranges(reader, 6, &actions_);
    std::vector<std::uint8_t> orders;
    read_ranges(reader, 256, &orders);
    orders_ = std::move(orders);
    read_ranges(reader, 4, &classes_);
    for (std::uint32_t left = reader->count(8), last = 0; left > 0; --left) {
      const std::uint32_t code = reader->below(kCodePoints, "the code point");
      if (!mapped_.empty() && code <= last) reader->refuse("has code points that are out of order");
      last = code;
      mapped_.push_back({code, std::string(utf8(reader))});
    }
    read_model(reader);
  }

  // The texts that came with the tables get the ids that came with them.
  void try_samples(Reader* reader) const {
    Work work;
    for (std::uint32_t left = reader->count(8); left > 0; --left) {
      const std::string_view text = utf8(reader);
      const Ids expected = reader->ids(vocabulary_);
      encode_one(text, &work);
      Ids found = before_;
      found.insert(found.end(), work.ids.begin(), work.ids.end());
      found.insert(found.end(), after_.begin(), after_.end());
      if (found != expected) reader->refuse("gives other ids for a text than the model's tokenizer did");
    }
  }

 protected:
  // What one call needs again and again.
  struct Work {
    Ids ids;
    std::string normalized, word;
    std::vector<std::uint32_t> codes;
    std::vector<std::int64_t> symbols;
    std::vector<std::pair<std::size_t, std::uint32_t>> starts;  // of BPE: byte, class
  };

  virtual void read_model(Reader* reader) = 0;
  // Appends the ids of a normalized text that is not empty.
  virtual void tokenize(std::string_view text, Work* work) const = 0;

  static std::string_view utf8(Reader* reader) {
    const std::string_view text = reader->text();
    if (detail::end_of_utf8(text) != text.size()) reader->refuse("holds a text that is not UTF-8");
    return text;
  }

  Class class_of(std::uint32_t code) const { return classes_.empty() ? kInside : static_cast<Class>(classes_[code]); }

  std::uint32_t vocabulary_ = 0;

 private:
  static void read_ranges(Reader* reader, std::uint32_t limit, std::vector<std::uint8_t>* values) {
    const std::uint32_t ranges = reader->count(12);
    if (ranges > 0) values->assign(kCodePoints, 0);
    for (std::uint32_t left = ranges, next = 0; left > 0; --left) {
      const std::uint32_t first = reader->below(kCodePoints, "the code point"), last = reader->below(kCodePoints, "the code point");
      if (first < next || last < first) reader->refuse("has code points that are out of order");
      std::fill(values->begin() + first, values->begin() + last + 1, static_cast<std::uint8_t>(reader->below(limit, "the number")));
      next = last + 1;
    }
  }

  void encode_one(std::string_view text, Work* work) const {
    work->ids.clear();
    const auto plain = [&](std::string_view part) {
      const std::string_view normalized = normalize(part, work);
      if (normalized_.empty()) {
        if (!normalized.empty()) tokenize(normalized, work);
        return;
      }
      normalized_.cut(
          normalized, [&](std::string_view rest) { tokenize(rest, work); }, [&](std::uint32_t id) { work->ids.push_back(id); });
    };
    if (raw_.empty())
      plain(text);
    else
      raw_.cut(text, plain, [&](std::uint32_t id) { work->ids.push_back(id); });
  }

  void finish(const Ids& ids, Ids* out) const {
    const auto room = static_cast<std::size_t>(max_length_) - before_.size() - after_.size();
    const std::size_t kept = std::min(ids.size(), room);
    const auto first = ids.begin() + static_cast<std::ptrdiff_t>(cuts_left_ ? ids.size() - kept : 0);
    out->reserve(before_.size() + kept + after_.size());
    *out = before_;
    out->insert(out->end(), first, first + static_cast<std::ptrdiff_t>(kept));
    out->insert(out->end(), after_.begin(), after_.end());
  }

  std::string_view normalize(std::string_view text, Work* work) const {
    if (actions_.empty()) return text;
    std::string& out = work->normalized;
    out.clear();
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t start = at;
      const std::uint32_t code = next_code(text, &at);
      switch (actions_[code]) {
        case kKeep:
          out.append(text.substr(start, at - start));
          break;
        case kBlank:
          out += ' ';
          break;
        case kSpaced:
          out += ' ';
          out.append(text.substr(start, at - start));
          out += ' ';
          break;
        case kMapped:
          out += mapped(code);
          break;
        case kBarrier:
          if (!orders_.empty()) out += '\xFF';  // in no UTF-8
          break;
        default:
          break;
      }
    }
    if (!orders_.empty()) put_marks_in_order(work);
    return out;
  }

  const std::string& mapped(std::uint32_t code) const {
    static const std::string nothing;
    const auto found =
        std::lower_bound(mapped_.begin(), mapped_.end(), code, [](const auto& entry, std::uint32_t c) { return entry.first < c; });
    return found != mapped_.end() && found->first == code ? found->second : nothing;
  }

  // Sorts neighbouring marks by their class, and takes the barriers out.
  void put_marks_in_order(Work* work) const {
    std::string& text = work->normalized;
    bool has_run = false, was_mark = false;
    for (std::size_t at = 0; at < text.size() && !has_run;) {
      if (text[at] == '\xFF') {
        has_run = true;
        break;
      }
      const bool is_mark = orders_[next_code(text, &at)] != 0;
      has_run = is_mark && was_mark;
      was_mark = is_mark;
    }
    if (!has_run) return;
    std::vector<std::uint32_t>& codes = work->codes;
    codes.clear();
    for (std::size_t at = 0; at < text.size();)
      if (text[at] == '\xFF') {
        codes.push_back(kNone);
        ++at;
      } else {
        codes.push_back(next_code(text, &at));
      }
    const auto order = [&](std::uint32_t code) { return code == kNone ? 0 : orders_[code]; };
    for (std::size_t first = 0; first < codes.size();) {
      std::size_t last = first;
      while (last < codes.size() && order(codes[last]) != 0) ++last;
      const auto begin = codes.begin();
      std::stable_sort(begin + static_cast<std::ptrdiff_t>(first), begin + static_cast<std::ptrdiff_t>(last),
                       [&](std::uint32_t a, std::uint32_t b) { return order(a) < order(b); });
      first = std::max(last, first + 1);
    }
    text.clear();
    for (const std::uint32_t code : codes)
      if (code != kNone) append_utf8(code, &text);
  }

  std::int64_t max_length_ = 0;
  bool cuts_left_ = false;
  Ids before_, after_;
  AddedTokens raw_, normalized_;
  std::vector<std::uint8_t> actions_, orders_, classes_;  // of each code point; empty where it is 0 for all
  std::vector<std::pair<std::uint32_t, std::string>> mapped_;
};

class WordPieceEncoder final : public TableEncoder {
 public:
  const char* name() const noexcept override { return "tables of WordPiece"; }

 private:
  void read_model(Reader* reader) override {
    unknown_ = reader->below(vocabulary_, "the token id");
    max_chars_ = reader->number();
    const std::string prefix(utf8(reader));
    for (std::uint32_t left = reader->count(8); left > 0; --left) {
      const std::uint32_t id = reader->below(vocabulary_, "the token id");
      const std::string_view piece = utf8(reader);
      if (piece.empty()) reader->refuse("has an empty piece");
      first_.add(piece, id);
      if (piece.size() > prefix.size() && piece.substr(0, prefix.size()) == prefix) next_.add(piece.substr(prefix.size()), id);
    }
  }

  void tokenize(std::string_view text, Work* work) const override {
    std::size_t word = 0, chars = 0;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t start = at;
      const Class kind = class_of(next_code(text, &at));
      if (kind == kInside) {
        ++chars;
        continue;
      }
      if (chars > 0) pieces(text.substr(word, start - word), chars, work);
      if (kind == kAlone) pieces(text.substr(start, at - start), 1, work);
      word = at;
      chars = 0;
    }
    if (chars > 0) pieces(text.substr(word), chars, work);
  }

  void pieces(std::string_view word, std::size_t chars, Work* work) const {
    const std::size_t before = work->ids.size();
    bool is_known = chars <= max_chars_;
    for (std::size_t at = 0; is_known && at < word.size();) {
      std::size_t bytes = 0;
      const std::uint32_t id = (at == 0 ? first_ : next_).longest(word.substr(at), &bytes);
      is_known = id != kNone;
      work->ids.push_back(id);
      at += bytes;
    }
    if (is_known) return;
    work->ids.resize(before);
    work->ids.push_back(unknown_);
  }

  Trie first_, next_;
  std::uint32_t unknown_ = 0, max_chars_ = 0;
};

class BpeEncoder final : public TableEncoder {
 public:
  const char* name() const noexcept override { return "tables of byte-level BPE"; }

 private:
  struct Merge {
    std::uint64_t pair;
    std::uint32_t rank, merged;
  };

  void read_model(Reader* reader) override {
    add_prefix_space_ = reader->below(2, "the flag") == 1;
    for (std::uint32_t& id : letters_) id = reader->below(vocabulary_, "the token id");
    const std::uint32_t merges = reader->count(12);
    for (std::uint32_t rank = 0; rank < merges; ++rank) {
      const std::uint32_t left = reader->below(vocabulary_, "the token id"), right = reader->below(vocabulary_, "the token id");
      merges_.push_back({std::uint64_t{left} << 32 | right, rank, reader->below(vocabulary_, "the token id")});
    }
    std::size_t size = 64;
    while (size < 2 * merges_.size()) size *= 2;
    slots_.assign(size, kNone);
    for (std::uint32_t i = 0; i < merges_.size(); ++i) {
      std::size_t at = hash(merges_[i].pair) & (size - 1);
      while (slots_[at] != kNone && merges_[slots_[at]].pair != merges_[i].pair) at = (at + 1) & (size - 1);
      if (slots_[at] != kNone) reader->refuse("merges two pieces twice");
      slots_[at] = i;
    }
  }

  static std::size_t hash(std::uint64_t key) { return static_cast<std::size_t>((key * 0x9E3779B97F4A7C15ULL) >> 20); }

  const Merge* merge_of(std::int64_t left, std::int64_t right) const {
    const std::uint64_t pair = static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint64_t>(right);
    for (std::size_t at = hash(pair) & (slots_.size() - 1); slots_[at] != kNone; at = (at + 1) & (slots_.size() - 1))
      if (merges_[slots_[at]].pair == pair) return &merges_[slots_[at]];
    return nullptr;
  }

  // GPT-2's rule: 's|'t|'re|'ve|'m|'ll|'d| ?letters| ?digits| ?others|blanks up to the last before something else|blanks
  void tokenize(std::string_view text, Work* work) const override {
    std::string& with_space = work->word;
    if (add_prefix_space_ && text[0] != ' ') {
      with_space.assign(1, ' ');
      with_space.append(text);
      text = with_space;
    }
    auto& chars = work->starts;
    chars.clear();
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t start = at;
      chars.emplace_back(start, class_of(next_code(text, &at)));
    }
    const auto byte_at = [&](std::size_t i) { return i < chars.size() ? chars[i].first : text.size(); };
    const auto run = [&](std::size_t from) {
      std::size_t to = from;
      while (to < chars.size() && chars[to].second == chars[from].second) ++to;
      return to;
    };
    for (std::size_t i = 0; i < chars.size();) {
      std::size_t end = i + contraction(text.substr(chars[i].first));
      if (end == i) {
        const std::size_t word = text[chars[i].first] == ' ' && i + 1 < chars.size() && chars[i + 1].second != kLeftOut ? i + 1 : i;
        end = run(word);
        // The last of several blanks goes with what follows.
        if (chars[word].second == kLeftOut && end < chars.size() && end - word > 1) --end;
      }
      merge(text.substr(chars[i].first, byte_at(end) - chars[i].first), work);
      i = end;
    }
  }

  static std::size_t contraction(std::string_view text) {
    if (text[0] != '\'') return 0;
    for (const std::string_view word : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
      if (text.substr(0, word.size()) == word) return word.size();
    return 0;
  }

  // Merges neighbours, the first rank first and of one rank the leftmost, until none can be.
  void merge(std::string_view word, Work* work) const {
    std::vector<std::int64_t>& ids = work->symbols;
    ids.clear();
    for (const char c : word) ids.push_back(letters_[static_cast<unsigned char>(c)]);
    if (ids.size() <= kFew)
      merge_few(&ids);
    else
      merge_many(&ids);
    work->ids.insert(work->ids.end(), ids.begin(), ids.end());
  }

  static constexpr std::size_t kFew = 48;

  void merge_few(std::vector<std::int64_t>* ids) const {
    while (ids->size() > 1) {
      const Merge* best = nullptr;
      std::size_t place = 0;
      for (std::size_t i = 0; i + 1 < ids->size(); ++i) {
        const Merge* merge = merge_of((*ids)[i], (*ids)[i + 1]);
        if (merge == nullptr || (best != nullptr && merge->rank >= best->rank)) continue;
        best = merge;
        place = i;
      }
      if (best == nullptr) return;
      (*ids)[place] = best->merged;
      ids->erase(ids->begin() + static_cast<std::ptrdiff_t>(place) + 1);
    }
  }

  // The same for words of which a search for each merge would take too long: a heap of merges, a list of pieces.
  void merge_many(std::vector<std::int64_t>* ids) const {
    struct Piece {
      std::int64_t id;
      std::size_t before, after;
    };
    struct Candidate {
      std::uint32_t rank;
      std::size_t left;
      std::int64_t left_id, right_id;
      bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
    };
    const std::size_t none = ids->size();
    std::vector<Piece> pieces;
    for (std::size_t i = 0; i < none; ++i) pieces.push_back({(*ids)[i], i == 0 ? none : i - 1, i + 1});
    std::priority_queue<Candidate> candidates;
    const auto offer = [&](std::size_t left) {
      if (left == none || pieces[left].after == none) return;
      const Piece &one = pieces[left], &other = pieces[one.after];
      if (const Merge* merge = merge_of(one.id, other.id)) candidates.push({merge->rank, left, one.id, other.id});
    };
    for (std::size_t i = 0; i < none; ++i) offer(i);
    while (!candidates.empty()) {
      const Candidate next = candidates.top();
      candidates.pop();
      Piece& left = pieces[next.left];
      if (left.id != next.left_id || left.after == none || pieces[left.after].id != next.right_id) continue;
      const std::size_t gone = left.after;
      left.id = merges_[next.rank].merged;
      left.after = pieces[gone].after;
      if (left.after != none) pieces[left.after].before = next.left;
      pieces[gone].id = -1;
      offer(left.before);
      offer(next.left);
    }
    ids->clear();
    for (std::size_t i = 0; i != none; i = pieces[i].after) ids->push_back(pieces[i].id);
  }

  bool add_prefix_space_ = false;
  std::array<std::uint32_t, 256> letters_{};
  std::vector<Merge> merges_;
  std::vector<std::uint32_t> slots_;  // of merges_ by their pair
};

}  // namespace

std::shared_ptr<const TextEncoder> open_tables(const TextRequest& request) {
  const std::string& path = request.tables;
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::int64_t size = file ? static_cast<std::int64_t>(file.tellg()) : -1;
  if (size < 0 || size > kMaxBytes) fail(Code::kInput, path + " cannot be read as the tables of a tokenizer. " + kMend);
  std::string bytes(static_cast<std::size_t>(size), '\0');
  file.seekg(0);
  if (!file.read(bytes.data(), size)) fail(Code::kInput, path + " cannot be read. " + kMend);
  Reader reader(path, bytes);
  if (reader.raw(kMagicBytes) != std::string_view(kMagic, kMagicBytes))
    reader.refuse("is no file of tables that this program reads");
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string stated, found;
  for (const char c : reader.raw(32))
    for (const int shift : {4, 0}) stated += kDigits[(static_cast<unsigned char>(c) >> shift) & 15];
  std::int64_t unused = 0;
  if (!detail::digest_file(request.file, &unused, &found) || found != stated) reader.refuse("was not made from " + request.file);
  std::shared_ptr<TableEncoder> encoder;
  const std::uint32_t kind = reader.number();
  if (kind == 1) encoder = std::make_shared<WordPieceEncoder>();
  if (kind == 2) encoder = std::make_shared<BpeEncoder>();
  if (encoder == nullptr) reader.refuse("has tables of the kind " + std::to_string(kind) + ", which this program does not know");
  encoder->read(&reader, request);
  encoder->try_samples(&reader);
  if (!reader.is_over()) reader.refuse("has more bytes than its tables");
  return encoder;
}

}  // namespace mra::serving
