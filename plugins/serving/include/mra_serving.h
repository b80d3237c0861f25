/* Serves a bundle that `mra-export bundle` wrote, for C and for languages that call C: texts or token ids in, one vector a text out.
 * The same library as mra/serving.h and mra/batcher.h, which say more of each option and of what is computed.
 *
 *   mra_embedder* embedder = NULL;
 *   if (mra_open("./bundle", NULL, &embedder) != MRA_OK) return complain(mra_last_error());
 *   float* vectors = malloc(2 * mra_dimension(embedder) * sizeof(float));
 *   const char* texts[] = {"The ferry leaves at seven.", "Boats depart early."};
 *   if (mra_embed_texts(embedder, texts, NULL, 2, NULL, NULL, MRA_FLOAT32, vectors, NULL) != MRA_OK) ...
 *   mra_close(embedder);
 *
 * Functions give a code, MRA_OK where all is well; what went wrong says mra_last_error(), of the thread that called. All but closing,
 * freeing and setting options may be called by any number of threads at once. Strings are UTF-8 and end with a zero, but for texts
 * whose sizes are given. Pointers may be null only where it is said. */
#ifndef MRA_SERVING_H
#define MRA_SERVING_H

#include <stddef.h>
#include <stdint.h>

#if defined(MRA_SERVING_SHARED)
#define MRA_C_API __attribute__((visibility("default")))
#else
#define MRA_C_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The numbers below 16 are the exit codes of mra-export and mra-embed. */
enum {
  MRA_OK = 0,
  MRA_INTERNAL = 1,    /* a bug, or the machine ran out of memory */
  MRA_INPUT = 2,       /* the bundle, an option or a text is not as it must be */
  MRA_ENVIRONMENT = 4, /* a library or a GPU is missing */
  MRA_FULL = 16,       /* too many texts wait: ask again later */
  MRA_DEADLINE = 17,   /* the request's deadline passed before it was answered */
  MRA_CANCELLED = 18,  /* by mra_cancel() */
  MRA_STOPPED = 19     /* the batcher was stopped */
};

/* Numbers of a vector. int8 is round(127 * number / the largest absolute value of its vector); that value / 127 is its scale. */
enum { MRA_FLOAT32 = 0, MRA_FLOAT16 = 1, MRA_INT8 = 2 };

enum { MRA_LOG_INFO = 0, MRA_LOG_WARNING = 1, MRA_LOG_ERROR = 2 };

typedef struct mra_options mra_options;
typedef struct mra_embedder mra_embedder;
typedef struct mra_batcher mra_batcher;

MRA_C_API const char* mra_version(void);

/* What went wrong in this thread's last call that did not give MRA_OK; valid until its next call. */
MRA_C_API const char* mra_last_error(void);

/* Options of mra_open() and mra_batcher_start(), by the names of the C++ structures' fields and their values as text: "device" ("auto",
 * "cpu", "gpu"), "variant", "gpu", "threads", "parallel_runs", "max_batch_tokens", "cuda_graphs", "verify_files", "mean_of_tokens",
 * "pad_to_longest" ("0" or "1"), "backend_dir", "tokenizer", "python_site", "shared_threads", "arena_bytes"; of the batcher
 * "max_queue", "max_delay" (microseconds), "batch_tokens", "runs". Null where there is no memory for one. */
MRA_C_API mra_options* mra_options_new(void);
MRA_C_API int mra_options_set(mra_options* options, const char* name, const char* value);
/* An OrtEnv* of the program's own, which is to outlive what is opened with it. */
MRA_C_API int mra_options_set_onnxruntime_env(mra_options* options, void* env);
MRA_C_API void mra_options_free(mra_options* options); /* null is passed over, as in the other functions that end something */

/* Reads and verifies a bundle and loads it; `options` may be null. */
MRA_C_API int mra_open(const char* directory, const mra_options* options, mra_embedder** embedder);
MRA_C_API void mra_close(mra_embedder* embedder);
/* Reads and verifies a bundle and loads nothing of it. */
MRA_C_API int mra_verify(const char* directory, int verify_files);

/* Numbers in the vector of a text. */
MRA_C_API size_t mra_dimension(const mra_embedder* embedder);
/* What was opened, as a JSON object: "backend", "backend_version", "device", "file", "precision", "native_operator", "architecture",
 * "hidden_size", "dimension", "max_seq_len", "max_length", "truncation_side", "vocab_size", "length_step", "pooling", "normalized",
 * "similarity", "tokenizer", "prompts", "default_prompt" (null for none), "include_prompt", "parallel_runs", "passed_over". Valid as
 * long as the embedder. */
MRA_C_API const char* mra_info(const mra_embedder* embedder);

/* One vector a text, in their order, to `out` [texts, dimension] of float, of uint16_t with a float16's bits, or of int8_t; then
 * `scales` [texts] are theirs, else it may be null. `ids` has the texts' token ids one after the other, `lengths` [texts] how many. */
MRA_C_API int mra_embed(const mra_embedder* embedder, const int64_t* ids, const size_t* lengths, size_t texts, int numbers,
                        void* out, float* scales);
/* The same of texts. `sizes` [count] are their bytes; null where each ends with a zero. `prompt` is the name of the prompt before each
 * and `prompt_text` the prompt itself; null for the bundle's default, and not both. */
MRA_C_API int mra_embed_texts(const mra_embedder* embedder, const char* const* texts, const size_t* sizes, size_t count,
                              const char* prompt, const char* prompt_text, int numbers, void* out, float* scales);
/* Token ids of one text; `size` is its bytes. `length` is how many there are; those that fit are written to `ids` [room]. */
MRA_C_API int mra_tokenize(const mra_embedder* embedder, const char* text, size_t size, const char* prompt, const char* prompt_text,
                           int64_t* ids, size_t room, size_t* length);

/* Batches what many callers bring. The embedder may be closed meanwhile. `options` may be null. */
MRA_C_API int mra_batcher_start(const mra_embedder* embedder, const mra_options* options, mra_batcher** batcher);
/* The answer to one request, called once for each that was accepted: MRA_OK and vectors, float [rows, columns], which are gone when it
 * returns; or another code, a message, and null. It should be short, and must not free the batcher. */
typedef void (*mra_done)(void* user, int code, const char* message, const float* vectors, size_t rows, size_t columns);
/* A request, as mra_embed() and mra_embed_texts(); `seconds` is how long it may take, 0 for as long as it does. `id` may be null. */
MRA_C_API int mra_submit(mra_batcher* batcher, const int64_t* ids, const size_t* lengths, size_t texts, double seconds,
                         mra_done done, void* user, uint64_t* id);
MRA_C_API int mra_submit_texts(mra_batcher* batcher, const char* const* texts, const size_t* sizes, size_t count,
                               const char* prompt, const char* prompt_text, double seconds, mra_done done, void* user,
                               uint64_t* id);
/* Answers a request with MRA_CANCELLED and gives 1; 0 where it is answered already. */
MRA_C_API int mra_cancel(mra_batcher* batcher, uint64_t id);
/* Accepts nothing more, and comes back when all that was accepted is answered: run, or where `drain` is 0 those that wait with
 * MRA_STOPPED. */
MRA_C_API void mra_batcher_stop(mra_batcher* batcher, int drain);
MRA_C_API void mra_batcher_free(mra_batcher* batcher); /* as mra_batcher_stop(batcher, 0) */

/* Counts of requests, batches and texts since the batcher was started; see BatcherCounters in mra/batcher.h. */
typedef struct mra_batcher_counters {
  uint64_t accepted, cancelled, expired, abandoned, failed, refused, batches, texts;
  double wait_seconds, run_seconds;
  size_t waiting_texts, open_requests;
} mra_batcher_counters;
MRA_C_API void mra_batcher_count(const mra_batcher* batcher, mra_batcher_counters* counters);

/* What the library and ONNX Runtime say while they work, from any thread; null for nobody. One for the process. */
typedef void (*mra_log)(void* user, int level, const char* message);
MRA_C_API int mra_set_log(mra_log log, void* user);

#ifdef __cplusplus
}
#endif

#endif /* MRA_SERVING_H */
