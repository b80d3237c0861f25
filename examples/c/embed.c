/* Texts to vectors from C, and how alike each is to the first: embed BUNDLE TEXT...
 *
 *   cc embed.c $(pkg-config --cflags --libs mra_serving) -o embed */
#include <mra_serving.h>
#include <stdio.h>
#include <stdlib.h>

static float dot(const float* one, const float* other, size_t numbers) {
  float sum = 0;
  for (size_t i = 0; i < numbers; ++i) sum += one[i] * other[i];
  return sum;
}

int main(int argc, char** argv) {
  mra_options* options = NULL;
  mra_embedder* embedder = NULL;
  float* vectors = NULL;
  int code = MRA_INTERNAL;
  if (argc < 3) {
    fprintf(stderr, "usage: embed BUNDLE TEXT...\n");
    return 2;
  }
  options = mra_options_new();
  if (options == NULL) goto done;
  if ((code = mra_options_set(options, "device", "auto")) != MRA_OK) goto done;
  if ((code = mra_open(argv[1], options, &embedder)) != MRA_OK) goto done;
  const size_t texts = (size_t)argc - 2, dimension = mra_dimension(embedder);
  vectors = malloc(texts * dimension * sizeof(float));
  if (vectors == NULL) goto done;
  code = mra_embed_texts(embedder, (const char* const*)argv + 2, NULL, texts, NULL, NULL, MRA_FLOAT32, vectors, NULL);
  if (code != MRA_OK) goto done;
  for (size_t i = 0; i < texts; ++i) {
    /* The cosine, where the bundle scales vectors to length 1. */
    printf("%.6f %s\n", (double)dot(vectors, vectors + i * dimension, dimension), argv[i + 2]);
  }
done:
  if (code != MRA_OK) fprintf(stderr, "%s\n", mra_last_error());
  free(vectors);
  mra_close(embedder);
  mra_options_free(options);
  return code;
}
