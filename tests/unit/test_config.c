// Tests of config: values from files and --set, defaults, every refusal, and hostile texts.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "base/memory.h"
#include "src/config/config.h"
#include "tests/support/seed.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[256];
static char file[300];

static int make_folder(void **state) {
  (void)state;
  const char *base = getenv("TMPDIR");
  snprintf(folder, sizeof folder, "%s/test_config.XXXXXX", base && *base ? base : "/tmp");
  if (!mkdtemp(folder)) return -1;
  snprintf(file, sizeof file, "%s/run.toml", folder);
  return 0;
}

static int remove_folder(void **state) {
  (void)state;
  unlink(file);
  return rmdir(folder);
}

static void write_bytes(const char *text, size_t length) {
  FILE *f = fopen(file, "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(text, 1, length, f), length);
  assert_int_equal(fclose(f), 0);
}

// Loads TOML text (NULL: no file) and at most one --set; model.path is always set, so that it is never what
// fails.
static status load(config *c, const char *text, const char *set) {
  const char *sets[] = {"model.path=m.gguf", set};
  status_reset();
  if (text) write_bytes(text, strlen(text));
  return config_load(c, text ? file : NULL, sets, set ? 2 : 1);
}

// The load must fail and its text must hold every one of the pieces.
static void refuses(const char *text, const char *set, const char *const *pieces) {
  config c;
  if (!load(&c, text, set)) fail_msg("accepted: %s %s", text ? text : "", set ? set : "");
  for (; *pieces; pieces++)
    if (!strstr(status_text(), *pieces)) fail_msg("no \"%s\" in: %s", *pieces, status_text());
  assert_null(c.model.path); // a refused config owns nothing
  status_reset();
}
#define REFUSES(text, set, ...) refuses(text, set, (const char *const[]){__VA_ARGS__, NULL})

static void accepts(config *c, const char *text, const char *set) {
  if (load(c, text, set)) fail_msg("refused: %s", status_text());
}

static void test_defaults(void **state) {
  (void)state;
  config c;
  accepts(&c, NULL, NULL);
  assert_null(c.file);
  assert_string_equal(c.model.path, "m.gguf");
  assert_int_equal(c.input.kind, INPUT_NONE);
  assert_int_equal(c.run.arms.count, 3);
  assert_string_equal(c.run.arms.arm[0].name, "f64@cpu");
  assert_string_equal(c.run.arms.arm[2].name, "q8k@cpu");
  assert_int_equal(c.run.context, 0);
  assert_int_equal(c.run.kv, KV_F16);
  assert_int_equal(c.run.generate, 0);
  assert_int_equal(c.run.threads, 0);
  assert_int_equal(c.run.seed, 0);
  assert_int_equal(c.run.chunk, 0);
  assert_true(c.run.temperature == 0 && c.run.top_p == 1 && c.run.top_k == 0);
  assert_string_equal(c.run.rows, "auto");
  assert_true(c.run.bind);
  assert_int_equal(c.ranks.arm.count, 0);
  assert_string_equal(c.ranks.shared.name, "");
  assert_int_equal(c.ranks.shared_ranks.count, 0);
  assert_int_equal(c.experts.placement, PLACEMENT_CONTIGUOUS);
  assert_int_equal(c.comm.transport, TRANSPORT_AUTO);
  assert_true(c.comm.deadline == 300);
  assert_int_equal(c.perplexity.skip, -1);
  assert_int_equal(c.trace.probes, 0);
  assert_int_equal(c.trace.n_layers, 0);
  assert_int_equal(c.parity.modes, 1u << MODE_FREE);
  assert_int_equal(c.parity.probes, 0);
  assert_int_equal(c.parity.bounds.count, 0);
  assert_string_equal(c.parity.routes, "");
  assert_false(c.output.routes);
  assert_string_equal(c.output.dir, "");
  assert_false(c.output.logits);
  config_close(&c);
  config_close(NULL);
}

static const char FULL[] =
    "# every form of TOML\n"
    "model.path = 'a/b.gguf'\n"
    "experts = { placement = [0, 1, 1, 0], replicas = \"1.5 GiB\" }\n"
    "[input]\n"
    "tokens = [1, 2,\n  2147483647, # a comment, \"quoted\n 0x10,]\n"
    "[run]\n"
    "arms = [\"q8k@cpu\", \"ranks\"]\n"
    "kv = \"f32\"\ncontext = 4_096\ngenerate = 7\nthreads = 2\nseed = 9223372036854775807\n"
    "chunk = 1\ntemperature = 1\ntop_p = 0.5\ntop_k = 3\nrows = \"portable\"\nbind = false\n"
    "[ranks]\narm = [\"q8k@cpu\", \"f32@cuda\", \"q8k@cpu\"]\nshared = \"f32@cpu\"\n"
    "[comm]\ntransport = \"self\"\ndeadline = 0.25\n"
    "[output]\ndir = \"\"\"x\"y\"\"\"\nlogits = true\n"
    "[perplexity]\n"
    "[trace]\nprobes = [\"l_out\", \"Qcur\"]\nlayers = [7, 0]\n"
    "[parity]\nmode = [\"teacher\", \"free\"]\nprobes = [\"ffn_inp\"]\nroutes = \"r.npy\"\n"
    "bound = [[\"default\", 1e-2], [\"ffn_inp\", 1], [\"l_out-47\", 0.125]]\n";

static void test_file(void **state) {
  (void)state;
  config c;
  status_reset();
  write_bytes(FULL, strlen(FULL));
  assert_int_equal(config_load(&c, file, NULL, 0), 0);
  assert_string_equal(c.file, file);
  assert_string_equal(c.model.path, "a/b.gguf");
  assert_int_equal(c.experts.placement, PLACEMENT_LIST);
  assert_int_equal(c.experts.n_experts, 4);
  assert_int_equal(c.experts.rank_of_expert[2], 1);
  assert_true(c.experts.replicas.bytes == (uint64_t)3 << 29 && !c.experts.replicas.experts);
  assert_int_equal(c.input.kind, INPUT_TOKENS);
  assert_int_equal(c.input.n_tokens, 4);
  assert_int_equal(c.trace.probes, 1u << PROBE_L_OUT | 1u << PROBE_QCUR);
  assert_int_equal(c.trace.n_layers, 2);
  assert_int_equal(c.trace.layers[0], 7);
  assert_int_equal(c.parity.modes, 1u << MODE_FREE | 1u << MODE_TEACHER);
  assert_int_equal(c.parity.probes, 1u << PROBE_FFN_INP);
  assert_string_equal(c.parity.routes, "r.npy");
  assert_int_equal(c.parity.bounds.count, 3);
  assert_int_equal(c.parity.bounds.bound[0].point, BOUND_ANY);
  assert_true(c.parity.bounds.bound[1].bound == 1 && c.parity.bounds.bound[1].layer == BOUND_ANY);
  assert_true(c.parity.bounds.bound[2].point == PROBE_L_OUT && c.parity.bounds.bound[2].layer == 47);
  assert_int_equal(c.input.tokens[2], INT32_MAX);
  assert_int_equal(c.input.tokens[3], 16);
  assert_int_equal(c.run.arms.count, 2);
  assert_string_equal(c.run.arms.arm[1].name, "ranks");
  assert_int_equal(c.run.kv, KV_F32);
  assert_int_equal(c.run.context, 4096);
  assert_true(c.run.seed == INT64_MAX);
  assert_true(c.run.temperature == 1 && c.run.top_p == 0.5); // an integer where a number is expected is fine
  assert_false(c.run.bind);
  assert_int_equal(c.ranks.arm.count, 3); // repeats are meant here
  assert_string_equal(c.ranks.arm.arm[1].name, "f32@cuda");
  assert_string_equal(c.ranks.shared.name, "f32@cpu");
  assert_true(c.comm.deadline == 0.25);
  assert_string_equal(c.output.dir, "x\"y");
  assert_true(c.output.logits);
  config_close(&c);
}

static void test_later_set_wins(void **state) {
  (void)state;
  const char *sets[] = {"run.chunk=7",           "run.threads = 3",        "run.chunk=9",
                        "model.path=\"z.gguf\"", "run.arms=[\"f32@cpu\"]", "experts.placement=strided"};
  config c;
  status_reset();
  write_bytes(FULL, strlen(FULL));
  assert_int_equal(config_load(&c, file, sets, 6), 0);
  assert_int_equal(c.run.chunk, 9);
  assert_int_equal(c.run.threads, 3);
  assert_string_equal(c.model.path, "z.gguf");
  assert_int_equal(c.run.arms.count, 1);
  assert_int_equal(c.experts.placement, PLACEMENT_STRIDED);
  assert_null(c.experts.rank_of_expert);
  config_close(&c);
}

static void test_inputs_replace_each_other(void **state) {
  (void)state;
  const char *sets[] = {"input.prompt=Once upon a time, 1 fox", "input.file=t.txt",
                        "input.prompts=[\"a\", \"\\u00e9\"]", "input.tokens=[5]", "input.prompt=\"a\\nb\""};
  const input_kind kinds[] = {INPUT_PROMPT, INPUT_FILE, INPUT_PROMPTS, INPUT_TOKENS, INPUT_PROMPT};
  for (size_t n = 1; n <= 5; n++) {
    config c;
    status_reset();
    write_bytes(FULL, strlen(FULL));
    assert_int_equal(config_load(&c, file, sets, n), 0);
    assert_int_equal(c.input.kind, kinds[n - 1]);
    assert_int_equal(c.input.n_tokens, n == 4);
    assert_int_equal(c.input.n_prompts, n == 1 || n == 5 ? 1 : n == 3 ? 2 : 0);
    assert_true(!c.input.file == (n != 2));
    if (n == 1) assert_string_equal(c.input.prompts[0], "Once upon a time, 1 fox");
    if (n == 3) assert_string_equal(c.input.prompts[1], "\xc3\xa9");
    if (n == 5) assert_string_equal(c.input.prompts[0], "a\nb");
    config_close(&c);
  }
  REFUSES("[input]\nprompt='a'\n\nfile='b'\n", NULL, "run.toml:4: input.file", "input.prompt");
  REFUSES("input.prompt='a'\ninput.tokens=[1]\n", NULL, "run.toml:2", "input.prompt", "input.tokens");
}

static void test_bare_words(void **state) {
  (void)state;
  config c;
  accepts(&c, NULL, "output.dir=out/1");
  assert_string_equal(c.output.dir, "out/1");
  config_close(&c);
  accepts(&c, NULL, "output.dir=");
  assert_string_equal(c.output.dir, "");
  config_close(&c);
  accepts(&c, NULL, "input.prompt=C# and \xc3\xa9t\xc3\xa9 = summer");
  assert_string_equal(c.input.prompts[0], "C# and \xc3\xa9t\xc3\xa9 = summer");
  config_close(&c);
  REFUSES(NULL, "output.dir=12", "output.dir", "expected string", "the integer 12", "in quotes");
  REFUSES(NULL, "input.prompt=\"open", "input.prompt", "one TOML value");
  REFUSES(NULL, "input.prompts=[\"a\", ", "one TOML value");
  REFUSES(NULL, "input.prompt='a'\nw = 2", "more than one value");
  REFUSES(NULL, "input.prompt={a = 1}", "one TOML value");
  REFUSES(NULL, "run.chunk=12x", "run.chunk", "integer from 0 to 2147483647", "the string \"12x\"");
  REFUSES(NULL, "run.chunk=99999999999999999999", "run.chunk", "one TOML value");
  REFUSES(NULL, "run.chunk", "KEY=VALUE");
  accepts(&c, NULL, NULL);
  assert_int_equal(config_set_dir(&c, "12"), 0); // --out DIR is text as it stands
  assert_string_equal(c.output.dir, "12");
  assert_int_equal(config_set_dir(&c, "a\xff"), STATUS_REFUSED);
  assert_string_equal(c.output.dir, "12");
  config_close(&c);
}

// A single value where a list is asked for is a list of one; words in a list need no quotes.
static void test_lists_as_people_write_them(void **state) {
  (void)state;
  config c;
  accepts(&c, "input.prompts = \"a, b\"\n", "run.arms=f32@cpu");
  assert_int_equal(c.input.n_prompts, 1);
  assert_string_equal(c.input.prompts[0], "a, b");
  assert_int_equal(c.run.arms.count, 1);
  assert_string_equal(c.run.arms.arm[0].name, "f32@cpu");
  config_close(&c);
  accepts(&c, "bench.prompt = 7\n", "run.arms=[f32@cpu , \"q8k@cpu\",f64@cpu]");
  assert_int_equal(c.run.arms.count, 3);
  assert_string_equal(c.run.arms.arm[2].name, "f64@cpu");
  assert_int_equal(c.bench.prompt.size[0], 7);
  config_close(&c);
  accepts(&c, "trace.layers = 1\ntrace.probes = \"l_out\"\n", "input.prompts=[no quotes here, 'a, b', x=1]");
  assert_int_equal(c.input.n_prompts, 3);
  assert_string_equal(c.input.prompts[0], "no quotes here");
  assert_string_equal(c.input.prompts[1], "a, b");
  assert_string_equal(c.input.prompts[2], "x=1");
  assert_int_equal(c.trace.layers[0], 1);
  config_close(&c);
  accepts(&c, NULL, "parity.mode=[teacher,forced]");
  assert_true(c.parity.modes >> MODE_FORCED & 1 && c.parity.modes >> MODE_TEACHER & 1);
  config_close(&c);
  accepts(&c, NULL, "run.stop=[<|im_end|>, 12, \"a\\nb\"]");
  assert_int_equal(c.run.stop.n_texts, 2);
  assert_string_equal(c.run.stop.texts[0], "<|im_end|>");
  assert_string_equal(c.run.stop.texts[1], "a\nb");
  assert_int_equal(c.run.stop.n_ids, 1);
  config_close(&c);
  accepts(&c, NULL, "run.stop=ROMEO");
  assert_string_equal(c.run.stop.texts[0], "ROMEO");
  config_close(&c);
  REFUSES(NULL, "run.stop=[1.5]", "run.stop", "a token id or a string", "the number 1.5");
  REFUSES(NULL, "run.stop=[true]", "run.stop", "found true");
  REFUSES(NULL, "run.stop=[\"\"]", "run.stop", "string that is not empty");
  REFUSES(NULL, "input.tokens=[1, two]", "input.tokens", "element 1", "the string \"two\"");
  REFUSES(NULL, "run.arms=[f32@cpu, f32@cpu]", "once", "f32@cpu");
  REFUSES(NULL, "input.tokens=[1, 2", "one TOML value");
}

static void test_unknown_keys(void **state) {
  (void)state;
  REFUSES("\n\n[run]\nthraeds = 2\n", NULL, "run.toml:4", "\"run.thraeds\"", "mean \"run.threads\"");
  REFUSES(NULL, "input.promt=x", "--set input.promt=x", "mean \"input.prompt\"");
  REFUSES(NULL, "chunk=1", "mean \"run.chunk\"");
  REFUSES(NULL, "ouptut.dir=x", "mean \"output.dir\"");
  REFUSES("[rnu]\n", NULL, "\"rnu\"", "did you mean");
  REFUSES("model = 3\n", NULL, "\"model\"", "mean \"model.path\"");
  REFUSES("[run.chunk]\nx = 3\n", NULL, "\"run.chunk.x\"", "mean \"run.chunk\"");
  REFUSES("\"run.chunk\" = 3\n", NULL, "mean \"run.chunk\""); // one quoted part is not two
  REFUSES("[[run]]\nchunk = 3\n", NULL, "\"run\"");
  REFUSES("\"run\\u0000\".chunk = 3\n", NULL, "unknown key");
  char line[3000] = "";
  memset(line, 'k', 2900);
  strcat(line, " = 1\n");
  REFUSES(line, NULL, "run.toml:1", "unknown key", "...");
}

static void test_wrong_types(void **state) {
  (void)state;
  REFUSES("ranks.arm = [\"q8k@cpu\"]\n", NULL, "ranks.arm", "expected it in run.arms");
  REFUSES("run.arms = [\"ranks\"]\nranks.arm = [\"q8k@cpu\"]\n", "run.arms=x", "run.arms"); // told as such
  REFUSES(NULL, "ranks.arm=[\"q8k@cpu\"]", "ranks.arm", "expected it in run.arms");
  REFUSES("\nrun.chunk = \"x\"\n", NULL, "run.toml:2", "run.chunk", "expected integer from 0",
          "the string \"x\"");
  REFUSES("run.chunk = 1.0\n", NULL, "run.chunk", "the number 1");
  REFUSES("run.bind = 1\n", NULL, "true or false", "the integer 1");
  REFUSES("run.kv = \"q8\"\n", NULL, "\"f16\" or \"f32\"", "\"q8\"");
  REFUSES("run.kv = true\n", NULL, "\"f16\" or \"f32\"", "found true");
  REFUSES("comm.transport = \"pigeon\"\n", NULL, "\"auto\", \"mpi\", \"nccl\" or \"self\"", "pigeon");
  REFUSES("model.path = 2024-01-01\n", NULL, "model.path", "a date");
  REFUSES("input.prompts = [\"x\",\n 3]\n", NULL, "run.toml:2", "the integer 3");
  REFUSES("input.tokens = [1,\n\n-1]\n", NULL, "run.toml:3", "input.tokens", "element 1", "the integer -1");
  REFUSES("input.tokens = [2147483648]\n", NULL, "2147483647", "2147483648");
  REFUSES("input.tokens = [[1]]\n", NULL, "an array of 1");
  REFUSES("input.tokens = [{a = 1}]\n", NULL, "a table");
  REFUSES("input.tokens = []\n", NULL, "an array of 0");
  REFUSES("experts.placement = \"round\"\n", NULL, "contiguous", "strided", "balanced", "round");
  REFUSES("experts.placement = [0, -1]\n", NULL, "element 1");
  REFUSES("experts.placement = 3\n", NULL, "the integer 3");
  REFUSES("model.path = \"\"\n", NULL, "not empty");
}

static void test_ranges(void **state) {
  (void)state;
  static const char *const bad[] = {
      "run.chunk=-2",        "run.chunk=-1",        "run.chunk=2147483648", "run.generate=-1",
      "run.threads=-1",      "run.threads=4097",    "run.context=-1",       "run.seed=-1",
      "run.top_p=0",         "run.top_p=1.0000001", "run.top_p=nan",        "run.top_p=-0.5",
      "run.top_k=-1",        "run.temperature=-1",  "run.temperature=inf",  "run.temperature=nan",
      "comm.deadline=0",     "comm.deadline=-3",    "comm.deadline=inf",    "comm.deadline=-nan",
      "perplexity.skip=-2",  "run.arms=[]",         "run.rows=\"\"",        "input.file=\"\"",
      "input.prompts=[\"\"]"};
  static const char *const good[] = {"run.chunk=0",       "run.chunk=2147483647", "run.threads=4096",
                                     "run.top_p=1e-300",  "run.top_p=1",          "comm.deadline=1e-3",
                                     "run.temperature=0", "perplexity.skip=0"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) REFUSES(NULL, bad[i], "expected", "found");
  for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
    config c;
    accepts(&c, NULL, good[i]);
    config_close(&c);
  }
}

static void test_arms(void **state) {
  (void)state;
  REFUSES(NULL, "run.arms=[\"f23@cpu\"]", "run.arms", "unknown path \"f23\"", "f64, f32, q8k");
  REFUSES(NULL, "run.arms=[\"f32@gpu\"]", "unknown backend \"gpu\"", "cpu, cuda");
  REFUSES(NULL, "run.arms=[\"f32@cpu@cpu\"]", "unknown backend \"cpu@cpu\"");
  REFUSES(NULL, "run.arms=[\"f32\"]", "path@backend", "\"f32\"");
  REFUSES(NULL, "run.arms=[\"@\"]", "unknown path \"\"");
  REFUSES(NULL, "run.arms=[\"f32@cpu\\u0000\"]", "unknown backend");
  REFUSES(NULL, "run.arms=[3]", "the integer 3");
  REFUSES(NULL, "run.arms=f32", "path@backend", "the string \"f32\"");
  REFUSES(NULL, "run.arms=[\"f32@cpu\", \"q8k@cpu\", \"f32@cpu\"]", "once", "f32@cpu");
  REFUSES(NULL, "run.arms=[\"ranks\"]", "run.arms", "ranks.arm");
  REFUSES("ranks.arm = [\"q8k@cpu\"]\n", "ranks.arm=[\"ranks\"]", "ranks.arm", "\"ranks\"");
  REFUSES(NULL, "ranks.shared=ranks", "ranks.shared", "path@backend");
  REFUSES(NULL, "run.arms=[\"f32@auto\"]", "unknown backend \"auto\"");
  REFUSES(NULL, "ranks.shared=f32@auto", "unknown backend \"auto\"");
  REFUSES(NULL, "ranks.arm=[\"f32@gpu\"]", "expected one of cpu, cuda, auto");
  REFUSES(NULL, "ranks.shared_ranks=[0, -1]", "integer from 0", "element 1");
  REFUSES(NULL, "ranks.shared_ranks=-1", "integer from 0", "the integer -1");
  REFUSES(NULL, "ranks.shared=f16@cpu", "ranks.shared", "f64, f32, q8k");
  char list[400] = "ranks.arm=[";
  for (int i = 0; i < 17; i++) strcat(list, "\"f32@cpu\",");
  strcat(list, "]");
  config c;
  accepts(&c, "run.arms = [\"ranks\"]\n", list); // as many as there are ranks
  assert_int_equal(c.ranks.arm.count, 17);
  config_close(&c);
  accepts(&c, "run.arms = [\"ranks\"]\n", "ranks.arm=[\"q8k@cpu\"]"); // checked when all is read
  config_close(&c);
  accepts(&c, "ranks.arm = [\"q8k@auto\"]\nrun.arms = [\"ranks\"]\n", "ranks.shared_ranks=[2, 0]");
  assert_string_equal(c.ranks.arm.arm[0].name, "q8k@auto");
  assert_int_equal(c.ranks.shared_ranks.count, 2);
  assert_int_equal(c.ranks.shared_ranks.id[0], 2);
  config_close(&c);
}

static void test_trace(void **state) {
  (void)state;
  REFUSES(NULL, "trace.probes=[\"ffn_moe_logit\"]", "trace.probes", "unknown probe \"ffn_moe_logit\"",
          "did you mean \"ffn_moe_logits\"?");
  REFUSES(NULL, "trace.probes=[\"\"]", "trace.probes", "unknown probe \"\"");
  REFUSES("trace.probes = [\"l_out\",\n3]\n", NULL, "run.toml:2", "trace.probes", "the integer 3");
  REFUSES(NULL, "trace.probes=[\"l_out\", \"l_out\"]", "each probe once", "l_out");
  REFUSES(NULL, "trace.probes=l_uot", "trace.probes", "unknown probe \"l_uot\"");
  REFUSES(NULL, "trace.layers=[0, -1]", "trace.layers", "element 1", "the integer -1");
  REFUSES(NULL, "trace.layers=-1", "trace.layers", "the integer -1");
  config c;
  accepts(&c, "trace.layers = [1, 2]\ntrace.probes = [\"l_out\"]\n", "trace.layers=[]");
  assert_int_equal(c.trace.n_layers, 0);
  assert_int_equal(c.trace.probes, 1u << PROBE_L_OUT);
  config_close(&c);
}

static void test_parity(void **state) {
  (void)state;
  config c;
  REFUSES(NULL, "parity.mode=teachers", "parity.mode", "\"free\", \"teacher\", \"forced\", \"local\"",
          "\"teachers\"");
  REFUSES(NULL, "parity.mode=[]", "parity.mode", "an array of 0");
  REFUSES(NULL, "parity.mode=[\"free\", \"free\"]", "each mode once");
  REFUSES(NULL, "parity.mode=[\"forced\", 1]", "the integer 1");
  REFUSES(NULL, "parity.probes=[\"ffn_moe_topk\"]", "probes of a layer that hold numbers", "ffn_moe_topk");
  REFUSES(NULL, "parity.probes=[\"result_output\"]", "probes of a layer", "result_output");
  REFUSES(NULL, "parity.probes=[\"ffn_imp\"]", "did you mean \"ffn_inp\"?");
  REFUSES(NULL, "parity.bound=-1", "number >= 0");
  REFUSES(NULL, "parity.bound=nan", "number >= 0");
  REFUSES(NULL, "parity.bound=much", "parity.bound", "the string \"much\"");
  REFUSES(NULL, "parity.bound=[1e-3]", "[\"PROBE\", number]");
  REFUSES(NULL, "parity.bound=[[\"ffn_inp\", \"x\"]]", "number >= 0", "the string \"x\"");
  REFUSES(NULL, "parity.bound=[[\"ffn_imp-3\", 1]]", "did you mean \"ffn_inp\"?");
  REFUSES(NULL, "parity.bound=[[\"ffn_inp-\", 1]]", "a layer's number");
  REFUSES(NULL, "parity.bound=[[\"ffn_inp-1x\", 1]]", "a layer's number");
  REFUSES(NULL, "parity.bound=[[\"ffn_moe_topk\", 1]]", "a probe of a layer that holds numbers");
  REFUSES(NULL, "parity.bound=[[\"l_out\", 1], [\"l_out\", 2]]", "each probe and layer once");
  accepts(&c, "parity.bound = 3\n", "parity.mode=forced");
  assert_int_equal(c.parity.modes, 1u << MODE_FREE | 1u << MODE_FORCED);
  assert_true(c.parity.bounds.count == 1 && c.parity.bounds.bound[0].bound == 3);
  config_close(&c);
  accepts(&c, "parity.mode = [\"forced\", \"local\", \"teacher\"]\n", "parity.bound=[[\"l_out-0\", 0]]");
  assert_int_equal(c.parity.modes, (1u << MODE_COUNT) - 1);
  assert_true(c.parity.bounds.bound[0].layer == 0 && c.parity.bounds.bound[0].bound == 0);
  config_close(&c);
}

static void test_text(void **state) {
  (void)state;
  REFUSES("input.prompt = \"a\\u0000b\"\n", NULL, "input.prompt", "NUL", "offset 1");
  REFUSES("input.prompts = [\"x\", \"\\u0000\"]\n", NULL, "input.prompts", "NUL");
  REFUSES("input.prompt = \"a\xff\"\n", NULL, "run.toml:1");
  REFUSES("input.prompt = \"\xed\xa0\x80\"\n", NULL, "run.toml:1"); // a surrogate
  REFUSES(NULL, "input.prompt=a\xc0\x80", "UTF-8", "offset 1");     // an overlong NUL
  REFUSES(NULL, "input.prompt=\xf5\x80\x80\x80", "UTF-8", "offset 0");
  REFUSES("run.chunk = \n", NULL, "run.toml:1", "TOML");
  REFUSES("\n[#\n", NULL, "run.toml:2", "TOML"); // an assertion of the parser, were they on
  REFUSES("a = [}\n", NULL, "run.toml:1", "TOML");
  REFUSES("\n\n]\n", NULL, "run.toml:3", "TOML");
  REFUSES("run.chunk = 1\nrun.chunk = 2\n", NULL, "run.toml:2");
  config c;
  write_bytes("run.chunk = 3\0\n", 15);
  status_reset();
  assert_int_equal(config_load(&c, file, (const char *[]){"model.path=m"}, 1), STATUS_REFUSED);
  assert_non_null(strstr(status_text(), "run.toml:1"));
  accepts(&c, "\xef\xbb\xbfrun.chunk = 3\r\n", NULL); // a byte order mark and DOS line ends
  assert_int_equal(c.run.chunk, 3);
  config_close(&c);
}

static void test_files(void **state) {
  (void)state;
  config c;
  char missing[300];
  snprintf(missing, sizeof missing, "%s/none/x.toml", folder);
  status_reset();
  assert_int_equal(config_load(&c, missing, NULL, 0), STATUS_REFUSED);
  assert_non_null(strstr(status_text(), missing));
  status_reset();
  assert_int_equal(config_load(&c, folder, NULL, 0), STATUS_REFUSED);
  assert_non_null(strstr(status_text(), folder));
  status_reset();
  assert_int_equal(config_load(&c, "/dev/zero", NULL, 0), STATUS_REFUSED);
  assert_non_null(strstr(status_text(), "at most"));
  status_reset();
  write_bytes("", 0);
  assert_int_equal(config_load(&c, file, NULL, 0), STATUS_REFUSED); // no model
  assert_non_null(strstr(status_text(), "model.path"));
  status_reset();
}

// A list or a key that toml++ alone would turn into a stack overflow.
static void test_deep_texts(void **state) {
  (void)state;
  enum { N = 400000 };
  char *text = malloc(2 * N + 200);
  static const char *const heads[] = {
      "", "x = [\"\"\"\n a\"\"\"\", {", "a = [{", "# c\n'q'.", "z = 'a'\n[[\"", ""};
  for (size_t h = 0; h < 6; h++) {
    char *end = stpcpy(text, heads[h]);
    if (h == 4) end = stpcpy(end, "q\".");
    for (int i = 0; i < N; i++) end = stpcpy(end, h == 5 ? "[" : "a.");
    stpcpy(end, "a = 1\n");
    if (h == 5) memcpy(text, "v=", 2);
    REFUSES(text, NULL, "run.toml:");
  }
  // Dots in texts, comments and numbers are no key parts.
  char *end = stpcpy(text, "input.prompt = \"\"\"");
  for (int i = 0; i < 200; i++) end = stpcpy(end, "\\\".a.\"\"");
  end = stpcpy(end, "\"\"\" # ");
  for (int i = 0; i < 200; i++) end = stpcpy(end, "a.'\"");
  stpcpy(end, "\nrun.rows = 'a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r.s'\nrun.chunk = 5\n");
  config c;
  accepts(&c, text, NULL);
  assert_int_equal(c.run.chunk, 5);
  config_close(&c);
  free(text);
}

static void test_canonical_text_reads_back(void **state) {
  (void)state;
  const char *sets[] = {"input.prompts=[\"\\\"q\\\" \\\\ \\t \\u0001 \\u007f \xc3\xa9\", \"b\"]",
                        "run.temperature=0.1", "comm.deadline=1e-7"};
  char *text[2][3];
  for (int round = 0; round < 3; round++) { // tokens; prompts; no input
    config c;
    status_reset();
    const char *source = round < 2 ? FULL : "model.path = 'm'\n";
    write_bytes(source, strlen(source));
    assert_int_equal(config_load(&c, file, sets, round == 1 ? 3 : 0), 0);
    assert_int_equal(config_text(&c, &text[0][round]), 0);
    config_close(&c);
    write_bytes(text[0][round], strlen(text[0][round]));
    if (config_load(&c, file, NULL, 0)) fail_msg("%s in %s", status_text(), text[0][round]);
    assert_int_equal(config_text(&c, &text[1][round]), 0);
    assert_string_equal(text[0][round], text[1][round]);
    assert_true(c.input.kind == (round == 0 ? INPUT_TOKENS : round == 1 ? INPUT_PROMPTS : INPUT_NONE));
    if (round == 1) {
      assert_string_equal(c.input.prompts[0], "\"q\" \\ \t \x01 \x7f \xc3\xa9");
      assert_true(c.run.temperature == 0.1 && c.comm.deadline == 1e-7);
    }
    config_close(&c);
  }
  assert_string_not_equal(text[0][0], text[0][1]);
  for (int i = 0; i < 6; i++) free(text[i / 3][i % 3]);
}

static void test_help_names_every_key(void **state) {
  (void)state;
  char *help, *text;
  size_t size;
  config c;
  FILE *f = open_memstream(&help, &size);
  config_print_keys(f, KEYS_ALL);
  fclose(f);
  accepts(&c, NULL, "input.file=x");
  assert_int_equal(config_text(&c, &text), 0);
  for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
    *strchr(line, ' ') = 0;
    if (!strstr(help, line)) fail_msg("no %s in the help", line);
  }
  for (char *line = strtok(help, "\n"); line; line = strtok(NULL, "\n")) assert_true(strlen(line) <= 110);
  free(help);
  free(text);
  config_close(&c);
}

// Random edits of a good file: any answer will do, but it must be an answer, with a text when it is a
// refusal.
static void test_random_edits(void **state) {
  (void)state;
  srand((unsigned)test_seed());
  static const char ALPHABET[] = "\"'[]{}=.,#\n\\ \xff\x00 0a9-+_ue@";
  int refused = 0;
  for (int round = 0; round < 3000; round++) {
    char text[sizeof FULL];
    config c;
    memcpy(text, FULL, sizeof FULL);
    for (int edits = 1 + rand() % 3; edits; edits--)
      text[rand() % (int)(sizeof FULL - 1)] = ALPHABET[rand() % (int)sizeof ALPHABET];
    write_bytes(text, sizeof FULL - 1 - (size_t)(rand() % 8 ? 0 : rand() % (int)(sizeof FULL - 1)));
    status_reset();
    if (config_load(&c, file, NULL, 0)) {
      refused++;
      if (!strstr(status_text(), file)) fail_msg("the fault does not name the file: %s", status_text());
    } else
      config_close(&c);
  }
  status_reset();
  assert_in_range(refused, 1000, 2999);
}

// The largest file in the least memory: the parser's out-of-memory exception becomes a status.
static void test_out_of_memory(void **state) {
  (void)state;
#ifdef __SANITIZE_ADDRESS__
  skip();
#else
  enum { N = 8000000 };
  char *text = malloc(2 * N + 32);
  char *end = stpcpy(text, "model.path='m'\ninput.tokens=[");
  for (int i = 0; i < N; i++) end = stpcpy(end, "1,");
  stpcpy(end, "]\n");
  write_bytes(text, strlen(text));
  free(text);
  pid_t child = fork();
  if (!child) {
    struct rlimit limit = {200 << 20, 200 << 20};
    config c;
    setrlimit(RLIMIT_AS, &limit);
    _exit(config_load(&c, file, NULL, 0) && strstr(status_text(), "out of memory") ? 0 : 1);
  }
  int how;
  assert_int_equal(waitpid(child, &how, 0), child);
  assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
#endif
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_defaults),
      cmocka_unit_test(test_file),
      cmocka_unit_test(test_later_set_wins),
      cmocka_unit_test(test_inputs_replace_each_other),
      cmocka_unit_test(test_bare_words),
      cmocka_unit_test(test_lists_as_people_write_them),
      cmocka_unit_test(test_unknown_keys),
      cmocka_unit_test(test_wrong_types),
      cmocka_unit_test(test_ranges),
      cmocka_unit_test(test_arms),
      cmocka_unit_test(test_trace),
      cmocka_unit_test(test_parity),
      cmocka_unit_test(test_text),
      cmocka_unit_test(test_files),
      cmocka_unit_test(test_deep_texts),
      cmocka_unit_test(test_canonical_text_reads_back),
      cmocka_unit_test(test_help_names_every_key),
      cmocka_unit_test(test_random_edits),
      cmocka_unit_test(test_out_of_memory),
  };
  return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
