/* Pictures in, labels out: classify [--folder DIR] [--self-test] [--top N] PICTURE...
 *
 * Runs model.onnx by ONNX Runtime's C API. A picture is a binary PGM or PPM file of 8 bits, or - for standard input;
 * a file may hold several, one after the other. Exit code 0: done; 1: the self-test failed; 2: bad input.
 *
 * In a program of your own: open_app, classify_pixels, close_app. */

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "onnxruntime_c_api.h"

#define MOST_PIXELS 89478485.0 /* of a picture; Pillow's limit */
#define MOST_TOP 100

typedef struct {
  int width, height, channels; /* 1: grey, 3: RGB */
  uint8_t *data;               /* row by row from the top left */
} Picture;

typedef struct {
  const OrtApi *api;
  OrtEnv *env;
  OrtSessionOptions *options;
  OrtSession *session;
  OrtMemoryInfo *memory;
  char *input, *output;
  int64_t height, width, channels; /* that pictures must have; height and width below 1: any */
  size_t classes;
  char *label_text;
  char **labels;
  int gives_probabilities;
} App;

static char problem[512]; /* what went wrong, on one line */

static int fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(problem, sizeof problem, format, arguments);
  va_end(arguments);
  for (char *at = problem; *at; at++)
    if (*at == '\n' || *at == '\r') *at = ' ';
  return 0;
}

static int ok(const App *app, OrtStatus *status, const char *what) {
  if (!status) return 1;
  fail("%s: %s", what, app->api->GetErrorMessage(status));
  app->api->ReleaseStatus(status);
  return 0;
}

/* ---- files ---- */

static FILE *open_in(const char *folder, const char *name, const char *mode) {
  char path[4096];
  if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) {
    fail("the path of %s is too long", name);
    return NULL;
  }
  FILE *file = fopen(path, mode);
  if (!file) fail("cannot read %s: %s", path, strerror(errno));
  return file;
}

/* A whole file with a zero behind it; NULL with a problem. */
static char *content_of(const char *folder, const char *name, size_t *length) {
  FILE *file = open_in(folder, name, "rb");
  if (!file) return NULL;
  char *content = NULL;
  size_t room = 0, used = 0;
  for (;;) {
    if (used + 1 >= room) {
      room = room ? 2 * room : 1 << 16;
      char *larger = realloc(content, room);
      if (!larger) {
        fail("not enough memory for %s", name);
        break;
      }
      content = larger;
    }
    size_t got = fread(content + used, 1, room - used - 1, file);
    used += got;
    if (got) continue;
    if (ferror(file)) {
      fail("cannot read %s/%s: %s", folder, name, strerror(errno));
      break;
    }
    fclose(file);
    content[used] = 0;
    *length = used;
    return content;
  }
  fclose(file);
  free(content);
  return NULL;
}

static int read_labels(App *app, const char *folder, size_t classes) {
  size_t length, count = 0;
  app->label_text = content_of(folder, "labels.txt", &length);
  if (!app->label_text) return 0;
  for (size_t at = 0; at < length; at++) count += app->label_text[at] == '\n';
  app->labels = calloc(count + 1, sizeof *app->labels);
  if (!app->labels) return fail("not enough memory for the labels");
  char *line = app->label_text;
  for (app->classes = 0; app->classes < count; app->classes++) {
    char *end = strchr(line, '\n');
    if (!end) break;
    *end = 0;
    app->labels[app->classes] = line;
    line = end + 1;
  }
  return app->classes == classes ||
         fail("%s/labels.txt names %zu classes instead of %zu; copy it again", folder, app->classes, classes);
}

/* ---- the model ---- */

static int find_input(App *app) {
  OrtAllocator *allocator;
  OrtTypeInfo *type = NULL;
  const OrtTensorTypeAndShapeInfo *tensor = NULL;
  ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  size_t rank = 0;
  int64_t shape[4] = {0, 0, 0, 0};
  const OrtApi *api = app->api;
  int good = ok(app, api->GetAllocatorWithDefaultOptions(&allocator), "allocator") &&
             ok(app, api->SessionGetInputName(app->session, 0, allocator, &app->input), "input") &&
             ok(app, api->SessionGetOutputName(app->session, 0, allocator, &app->output), "output") &&
             ok(app, api->SessionGetInputTypeInfo(app->session, 0, &type), "input") &&
             ok(app, api->CastTypeInfoToTensorInfo(type, &tensor), "input") && tensor &&
             ok(app, api->GetTensorElementType(tensor, &element), "input") &&
             ok(app, api->GetDimensionsCount(tensor, &rank), "input");
  if (good && (element != ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 || rank != 4))
    good = fail("the model's input is not uint8 (N, H, W, C)");
  good = good && ok(app, api->GetDimensions(tensor, shape, 4), "input");
  if (type) api->ReleaseTypeInfo(type);
  app->height = shape[1], app->width = shape[2], app->channels = shape[3];
  if (good && app->channels != 1 && app->channels != 3)
    good = fail("the model takes %lld channels; allowed: 1 or 3", (long long)app->channels);
  return good;
}

static int start_session(App *app, const char *folder, long model_bytes) {
  const OrtApi *api = app->api;
  size_t length = 0;
  char *model = content_of(folder, "model.onnx", &length);
  if (!model) return 0;
  int good = (long)length == model_bytes ||
             fail("%s/model.onnx has %zu bytes instead of %ld: cut short or replaced", folder, length, model_bytes);
  good = good && ok(app, api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "classify", &app->env), "ONNX Runtime") &&
         ok(app, api->CreateSessionOptions(&app->options), "ONNX Runtime") &&
         ok(app, api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &app->memory), "ONNX Runtime") &&
         ok(app, api->CreateSessionFromArray(app->env, model, length, app->options, &app->session),
            "model.onnx is not a usable model");
  free(model);
  return good && find_input(app);
}

/* Opens the app in a folder; 0 with a problem. close_app is to be called either way. */
int open_app(App *app, const char *folder) {
  memset(app, 0, sizeof *app);
  app->api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (!app->api)
    return fail("ONNX Runtime %s is older than the header it was built with", OrtGetApiBase()->GetVersionString());
  FILE *facts = open_in(folder, "model.txt", "r");
  if (!facts) return 0;
  long model_bytes = 0;
  unsigned long classes = 0;
  int found = fscanf(facts, "model_bytes %ld classes %lu gives_probabilities %d", &model_bytes, &classes,
                     &app->gives_probabilities);
  fclose(facts);
  if (found != 3) return fail("%s/model.txt is damaged; copy it again", folder);
  return read_labels(app, folder, classes) && start_session(app, folder, model_bytes);
}

void close_app(App *app) {
  const OrtApi *api = app->api;
  OrtAllocator *allocator = NULL;
  if (app->session && ok(app, api->GetAllocatorWithDefaultOptions(&allocator), "allocator")) {
    if (app->input) ok(app, api->AllocatorFree(allocator, app->input), "input");
    if (app->output) ok(app, api->AllocatorFree(allocator, app->output), "output");
  }
  if (api && app->memory) api->ReleaseMemoryInfo(app->memory);
  if (api && app->session) api->ReleaseSession(app->session);
  if (api && app->options) api->ReleaseSessionOptions(app->options);
  if (api && app->env) api->ReleaseEnv(app->env);
  free(app->labels);
  free(app->label_text);
  memset(app, 0, sizeof *app);
}

/* ITU-R 601 luma in 16-bit fixed point, as Pillow has it. */
static uint8_t luma(const uint8_t *rgb) {
  return (uint8_t)((19595u * rgb[0] + 38470u * rgb[1] + 7471u * rgb[2] + 0x8000u) >> 16);
}

/* The pixels with the model's channels; the caller frees them. */
static uint8_t *recoloured(const Picture *picture, int channels) {
  size_t count = (size_t)picture->width * (size_t)picture->height;
  uint8_t *pixels = malloc(count * (size_t)channels);
  if (!pixels) {
    fail("not enough memory for %d x %d pixels", picture->height, picture->width);
    return NULL;
  }
  const uint8_t *from = picture->data;
  if (picture->channels == channels) {
    memcpy(pixels, from, count * (size_t)channels);
  } else if (channels == 1) {
    for (size_t at = 0; at < count; at++) pixels[at] = luma(from + 3 * at);
  } else {
    for (size_t at = 0; at < 3 * count; at++) pixels[at] = from[at / 3];
  }
  return pixels;
}

/* What the model answers, app->classes numbers; 0 with a problem. */
int outputs_of(App *app, const Picture *picture, float *outputs) {
  const OrtApi *api = app->api;
  if (app->height > 0 && app->width > 0 && (app->height != picture->height || app->width != picture->width))
    return fail("the picture has %d x %d pixels; this model takes %lld x %lld only", picture->height, picture->width,
                (long long)app->height, (long long)app->width);
  uint8_t *pixels = recoloured(picture, (int)app->channels);
  if (!pixels) return 0;
  int64_t shape[4] = {1, picture->height, picture->width, app->channels};
  size_t bytes = (size_t)picture->height * (size_t)picture->width * (size_t)app->channels, count = 0;
  const char *inputs[1] = {app->input}, *names[1] = {app->output};
  OrtValue *input = NULL, *output = NULL;
  OrtTensorTypeAndShapeInfo *info = NULL;
  ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  void *values = NULL;
  int good =
      ok(app,
         api->CreateTensorWithDataAsOrtValue(app->memory, pixels, bytes, shape, 4, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
                                             &input),
         "the picture") &&
      ok(app, api->Run(app->session, NULL, inputs, (const OrtValue *const *)&input, 1, names, 1, &output),
         "the model cannot take this picture") &&
      ok(app, api->GetTensorTypeAndShape(output, &info), "output") &&
      ok(app, api->GetTensorElementType(info, &element), "output") &&
      ok(app, api->GetTensorShapeElementCount(info, &count), "output") &&
      ok(app, api->GetTensorMutableData(output, &values), "output");
  if (good && (element != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || count != app->classes))
    good = fail("the model gives %zu outputs; labels.txt names %zu classes", count, app->classes);
  if (good) memcpy(outputs, values, count * sizeof(float));
  if (info) api->ReleaseTensorTypeAndShapeInfo(info);
  if (output) api->ReleaseValue(output);
  if (input) api->ReleaseValue(input);
  free(pixels);
  return good;
}

static size_t winner(const float *values, size_t count) {
  size_t best = 0;
  for (size_t at = 1; at < count; at++)
    if (values[at] > values[best]) best = at;
  return best;
}

/* Softmax in place, unless the model gives probabilities already. */
static void to_probabilities(const App *app, float *values) {
  if (app->gives_probabilities) return;
  float largest = values[winner(values, app->classes)];
  double sum = 0.0;
  for (size_t at = 0; at < app->classes; at++) sum += exp((double)values[at] - largest);
  for (size_t at = 0; at < app->classes; at++) values[at] = (float)(exp((double)values[at] - largest) / sum);
}

/* The probabilities of all classes, app->classes numbers; 0 with a problem. */
int classify_pixels(App *app, const Picture *picture, float *probabilities) {
  if (!outputs_of(app, picture, probabilities)) return 0;
  to_probabilities(app, probabilities);
  return 1;
}

/* ---- pictures ---- */

/* The next number of a PNM head, after spaces and comments; -1 where there is none. */
static long next_number(FILE *file) {
  int letter = fgetc(file);
  while (isspace(letter) || letter == '#') {
    if (letter == '#')
      while (letter != '\n' && letter != EOF) letter = fgetc(file);
    letter = fgetc(file);
  }
  if (!isdigit(letter)) return -1;
  long value = 0;
  for (; isdigit(letter); letter = fgetc(file)) {
    value = 10 * value + (letter - '0');
    if (value > 1000000000L) return -1;
  }
  return letter == EOF ? -1 : value; /* one space behind the number is read */
}

/* Reads the next picture of a stream: 1, 0 with a problem, or -1 at its end. The caller frees picture->data. */
static int read_picture(FILE *file, const char *name, int first, Picture *picture) {
  memset(picture, 0, sizeof *picture);
  int letter = fgetc(file);
  while (!first && isspace(letter)) letter = fgetc(file);
  if (letter == EOF) return first ? fail("%s is empty; give a picture", name) : -1;
  int kind = letter == 'P' ? fgetc(file) : 0;
  if (kind != '5' && kind != '6')
    return fail("%s is no picture of a known format; allowed: binary PGM (P5) and PPM (P6)", name);
  long width = next_number(file), height = next_number(file), most = next_number(file);
  if (width < 1 || height < 1 || most < 1) return fail("%s: its head is damaged", name);
  if (most != 255) return fail("%s: its largest value is %ld; allowed: 255", name, most);
  if ((double)width * (double)height > MOST_PIXELS)
    return fail("%s has %ld x %ld pixels; allowed: %.0f", name, width, height, MOST_PIXELS);
  picture->width = (int)width, picture->height = (int)height, picture->channels = kind == '5' ? 1 : 3;
  size_t bytes = (size_t)width * (size_t)height * (size_t)picture->channels;
  picture->data = malloc(bytes);
  if (!picture->data) return fail("not enough memory for %s", name);
  if (fread(picture->data, 1, bytes, file) == bytes) return 1;
  free(picture->data);
  picture->data = NULL;
  return fail("%s is cut short", name);
}

/* ---- the command line ---- */

static void print_best(const App *app, const char *name, float *probabilities, size_t top, double ms) {
  printf("%s:", name);
  for (size_t place = 0; place < top && place < app->classes; place++) {
    size_t best = winner(probabilities, app->classes);
    printf("%s %s %.1f%%", place ? "," : "", app->labels[best], 100.0 * probabilities[best]);
    probabilities[best] = -1.0f;
  }
  printf(" (%.2f ms)\n", ms);
}

static double now_ms(void) {
  struct timespec now;
  timespec_get(&now, TIME_UTC);
  return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

/* All pictures of one file. */
static int classify_file(App *app, const char *path, size_t top, float *probabilities) {
  FILE *file = strcmp(path, "-") ? fopen(path, "rb") : stdin;
  if (!file) return fail("cannot read %s: %s", path, strerror(errno));
  int state;
  Picture picture;
  for (int first = 1; (state = read_picture(file, path, first, &picture)) == 1; first = 0) {
    double began = now_ms();
    int good = classify_pixels(app, &picture, probabilities);
    free(picture.data);
    if (!good) {
      state = 0;
      break;
    }
    print_best(app, path, probabilities, top, now_ms() - began);
  }
  if (file != stdin) fclose(file);
  return state != 0;
}

/* One golden picture: 1 passed, 0 failed, -1 with a problem. */
static int test_picture(App *app, const char *folder, FILE *golden, double tolerance, float *outputs) {
  char name[256];
  unsigned long index;
  if (fscanf(golden, "%255s %lu", name, &index) != 2 || index >= app->classes) {
    fail("golden/golden.txt is damaged; copy it again");
    return -1;
  }
  char path[300];
  snprintf(path, sizeof path, "golden/%s", name);
  FILE *file = open_in(folder, path, "rb");
  if (!file) return -1;
  Picture picture;
  int good = read_picture(file, name, 1, &picture) == 1 && outputs_of(app, &picture, outputs);
  fclose(file);
  free(picture.data);
  if (!good) return -1;
  double worst = 0.0;
  for (size_t at = 0; at < app->classes; at++) {
    double expected;
    if (fscanf(golden, "%lf", &expected) != 1) {
      fail("golden/golden.txt is cut short; copy it again");
      return -1;
    }
    double distance = fabs((double)outputs[at] - expected);
    if (isnan(distance)) distance = INFINITY;
    if (distance > worst) worst = distance;
  }
  size_t found = winner(outputs, app->classes);
  int passed = found == index && worst <= tolerance;
  printf("%s  %s: %s, expected %s; outputs differ by %.3g\n", passed ? "passed" : "FAILED", name, app->labels[found],
         app->labels[index], worst);
  return passed;
}

static int self_test(App *app, const char *folder, float *outputs) {
  FILE *golden = open_in(folder, "golden/golden.txt", "r");
  if (!golden) return 2;
  int pictures = 0, passed = 0, state = 1;
  double tolerance = 0.0;
  if (fscanf(golden, "pictures %d tolerance %lf", &pictures, &tolerance) != 2)
    state = fail("golden/golden.txt is damaged; copy it again") - 1;
  for (int at = 0; at < pictures && state >= 0; at++) {
    state = test_picture(app, folder, golden, tolerance, outputs);
    passed += state == 1;
  }
  fclose(golden);
  if (state < 0) return 2;
  printf("self-test: %d of %d passed (tolerance %.3g)\n", passed, pictures, tolerance);
  return passed == pictures ? 0 : 1;
}

static int usage(const char *what) {
  fprintf(stderr, "error: %s; usage: classify [--folder DIR] [--self-test] [--top N] PICTURE...\n", what);
  return 2;
}

int main(int count, char **arguments) {
  const char *folder = ".";
  long top = 5;
  int testing = 0, first = 1;
  for (; first < count && !strncmp(arguments[first], "--", 2); first++) {
    if (!strcmp(arguments[first], "--self-test")) testing = 1;
    else if (!strcmp(arguments[first], "--folder") && first + 1 < count) folder = arguments[++first];
    else if (!strcmp(arguments[first], "--top") && first + 1 < count) top = strtol(arguments[++first], NULL, 10);
    else return usage(arguments[first]);
  }
  if (top < 1 || top > MOST_TOP) return usage("--top takes 1 to 100");
  if (first == count && !testing) return usage("no picture");
  App app;
  int code = open_app(&app, folder) ? 0 : 2;
  float *outputs = calloc(app.classes + 1, sizeof *outputs);
  if (!outputs) code = fail("not enough memory") + 2;
  if (!code && testing) code = self_test(&app, folder, outputs);
  if (code == 2) fprintf(stderr, "error: %s\n", problem);
  int unreadable = 0; /* which does not keep the other pictures from being classified */
  for (int at = first; at < count && code != 2; at++) {
    if (classify_file(&app, arguments[at], (size_t)top, outputs)) continue;
    fprintf(stderr, "error: %s\n", problem);
    unreadable = 1;
  }
  free(outputs);
  close_app(&app);
  return unreadable ? 2 : code;
}
