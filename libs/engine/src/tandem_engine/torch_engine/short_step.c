/* A step in one call: from token ids to logits, or to the likeliest tokens. With few rows the products take as long as
 * their weights take to come from memory, and whatever lies between them (calls, waking threads, small tensors) would
 * cost as much again; with many it costs a fifth of a small model's step.
 *
 * The threads go through the phases below together; a phase is parallel over rows, tiles of outputs or heads. Roundings
 * are those of the torch path (`model.py`), whose results these are but for the order of sums. */

#include <omp.h>

#include "attend_chunk.h"
#include "elementwise.h"
#include "product.h"
#include "team.h"

enum {
    BLOCK_ROWS = 16 * MAX_ROWS, /* whose products with a tile are held at a time; fewer are not worth a piece */
    PIECES = 16,                /* of a product, for each thread: all end at about the same time */
};

/* One layer. Norms have float weights and are null where the family has none. */
struct layer {
    struct matrix qkv, output, gate_up, down;
    const float *attention_norm, *q_norm, *k_norm, *after_attention, *mlp_norm, *after_mlp;
    const number *cos, *sin; /* (positions, rotary_dim) */
    int64_t window;          /* tokens seen, the own one included; 0: all */
};

struct model {
    const struct layer *layers;
    int64_t num_layers, hidden, intermediate, rotary_dim, vocab, gelu;
    struct attention attention;
    number *pool;
    const number *embeddings; /* (vocab, hidden), or null: in the head's tiles */
    struct matrix head;
    const float *norm;
    float eps, embedding_scale, query_scale, logit_softcap;
};

/* Tokens that are computed together. Those of one sequence share a block table. */
struct step {
    int64_t rows;
    const int64_t *token_ids, *positions;
    const int64_t *blocks, *tables; /* block ids of all sequences; where each token's begin */
    int64_t num_single;
    const int64_t *single; /* tokens that attend by themselves */
    int64_t num_stretches;
    const int64_t *stretches; /* (first token, tokens) of those that attend together, up to STRETCH_ROWS rows */
    int64_t num_drawing;
    const int64_t *drawing; /* rows whose logits are wanted */
    number *scratch;        /* room for `struct work` */
    float *logits;          /* (drawing, vocab), or null: */
    int64_t *likeliest;     /* (drawing,): the first of the likeliest tokens */
    float *best;            /* (threads, drawing) */
    int64_t *best_tokens;   /* (threads, drawing) */
};

/* A step's intermediate results, each (rows, ...): the residual stream; what a part of a layer gets and gives. */
struct work {
    number *x, *normed, *delta, *qkv, *attended, *gated;
};

static int64_t qkv_width(const struct attention *a) { return (a->heads + 2 * a->kv_heads) * a->head_dim; }

static void normalise(number *out, const number *x, const float *weight, int64_t size, float eps) {
    float factor = norm_factor(x, size, eps);
    for (int64_t i = 0; i < size; i += LANES) store(out + i, load(x + i) * factor * load_floats(weight + i));
}

/* Row `row` of the residual stream: the embedding of its token. */
static void embed(const struct model *m, number *x, int64_t token) {
    const number *tile = m->head.tiles + token / TILE * TILE * m->hidden + token % TILE * PACK;
    if (m->embeddings)
        memcpy(x, m->embeddings + token * m->hidden, (size_t)m->hidden * sizeof(number));
    else
        for (int64_t i = 0; i < m->hidden; i += PACK) memcpy(x + i, tile + i * TILE, PACK * sizeof(number));
    if (m->embedding_scale != 1.0f)
        for (int64_t i = 0; i < m->hidden; i += LANES) store(x + i, load(x + i) * m->embedding_scale);
}

/* What a part of a layer gave goes to the residual stream, in some families through a norm. */
static void add(const struct model *m, number *x, number *delta, const float *after) {
    if (after) normalise(delta, delta, after, m->hidden, m->eps);
    for (int64_t i = 0; i < m->hidden; i += LANES) store(x + i, load(x + i) + load(delta + i));
}

/* How the products of a weight with rows are shared out: pieces of one tile by `rows` rows. Few rows are one piece, so
 * that a weight is read once. */
struct pieces {
    int64_t count, rows;
};

static struct pieces pieces_of(const struct team *team, int64_t tiles, int64_t rows) {
    int64_t parts = (PIECES * team->size + tiles - 1) / tiles, most = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    parts = parts < most ? parts : most;
    struct pieces pieces = {.rows = (rows + parts - 1) / parts};
    pieces.count = tiles * ((rows + pieces.rows - 1) / pieces.rows);
    return pieces;
}

/* out (rows, outputs) = x W^T + b, rounded. */
static void project(struct team *team, const struct matrix *w, number *out, const number *x, int64_t rows) {
    float tile[BLOCK_ROWS * TILE] __attribute__((aligned(64)));
    int64_t tiles = (w->outputs + TILE - 1) / TILE;
    struct pieces pieces = pieces_of(team, tiles, rows);
    EACH(piece, team, pieces.count) {
        int64_t t = piece % tiles, begin = piece / tiles * pieces.rows;
        int64_t end = begin + pieces.rows < rows ? begin + pieces.rows : rows;
        for (int64_t row = begin; row < end; row += BLOCK_ROWS) {
            int64_t count = end - row < BLOCK_ROWS ? end - row : BLOCK_ROWS, is_last = row + count == end;
            multiply(tile, w, t, is_last && t + 1 < tiles ? t + 1 : t, x + row * w->inputs, count);
            for (int64_t r = 0; r < count; r++)
                for (int64_t i = 0; i < TILE && t * TILE + i < w->outputs; i += LANES)
                    store(out + (row + r) * w->outputs + t * TILE + i, load_floats(tile + r * TILE + i));
        }
    }
    meet(team);
}

/* out (rows, intermediate) = act(gate) * up. */
static void project_gated(struct team *team, const struct model *m, const struct matrix *w, number *out,
                          const number *x, int64_t rows) {
    float gates[BLOCK_ROWS * TILE] __attribute__((aligned(64))), ups[BLOCK_ROWS * TILE] __attribute__((aligned(64)));
    int64_t tiles = m->intermediate / TILE;
    struct pieces pieces = pieces_of(team, tiles, rows);
    EACH(piece, team, pieces.count) {
        int64_t t = piece % tiles, begin = piece / tiles * pieces.rows;
        int64_t end = begin + pieces.rows < rows ? begin + pieces.rows : rows;
        for (int64_t row = begin; row < end; row += BLOCK_ROWS) {
            int64_t count = end - row < BLOCK_ROWS ? end - row : BLOCK_ROWS, is_last = row + count == end;
            multiply(gates, w, t, tiles + t, x + row * w->inputs, count);
            multiply(ups, w, tiles + t, is_last && t + 1 < tiles ? t + 1 : t, x + row * w->inputs, count);
            for (int64_t r = 0; r < count; r++)
                for (int64_t i = 0; i < TILE; i += LANES) {
                    floats gate = rounded(load_floats(gates + r * TILE + i));
                    floats up = rounded(load_floats(ups + r * TILE + i));
                    store(out + (row + r) * m->intermediate + t * TILE + i,
                          rounded(m->gelu ? gelu(gate) : silu(gate)) * up);
                }
        }
    }
    meet(team);
}

/* Norm, if any, and rotation of one head, in place. */
static void turn(const struct model *m, number *head, const float *norm, const number *cos, const number *sin) {
    if (norm) normalise(head, head, norm, m->attention.head_dim, m->eps);
    int64_t half = m->rotary_dim / 2;
    for (int64_t i = 0; i < half; i += LANES) {
        floats low = load(head + i), high = load(head + half + i);
        store(head + i, rounded(low * load(cos + i)) + high * load(sin + i));
        store(head + half + i, rounded(high * load(cos + half + i)) + low * load(sin + half + i));
    }
}

/* Queries and keys of one token get their position; its keys and values go to the pool. */
static void place(const struct model *m, const struct layer *layer, number *qkv, number *keys, int64_t position,
                  const int64_t *blocks) {
    const struct attention *a = &m->attention;
    const number *cos = layer->cos + position * m->rotary_dim, *sin = layer->sin + position * m->rotary_dim;
    int64_t width = a->kv_heads * a->head_dim, num_queries = a->heads * a->head_dim;
    for (int64_t head = 0; head < a->heads; head++) turn(m, qkv + head * a->head_dim, layer->q_norm, cos, sin);
    for (int64_t head = 0; head < a->kv_heads; head++)
        turn(m, qkv + num_queries + head * a->head_dim, layer->k_norm, cos, sin);
    if (m->query_scale != 1.0f)
        for (int64_t i = 0; i < num_queries; i += LANES) store(qkv + i, load(qkv + i) * m->query_scale);
    number *slot = keys + blocks[position / a->block_size] * a->block_stride + position % a->block_size * width;
    memcpy(slot, qkv + num_queries, (size_t)width * sizeof(number));
    memcpy(slot + a->block_size * width, qkv + num_queries + width, (size_t)width * sizeof(number));
}

/* Attention of one layer's stretches, keys and values being in the pool. */
static void attend_together(struct team *team, const struct model *m, const struct step *step,
                            const struct work *work, const number *keys, int64_t window) {
    const struct attention *a = &m->attention;
    int64_t width = qkv_width(a), heads_width = a->heads * a->head_dim, shared = a->heads / a->kv_heads;
    EACH(piece, team, step->num_stretches * a->kv_heads) {
        const int64_t *stretch = step->stretches + piece / a->kv_heads * 2;
        int64_t row = stretch[0], head = piece % a->kv_heads;
        attend_stretch(a, &(struct stretch){
                              .queries = work->qkv + row * width + head * shared * a->head_dim,
                              .out = work->attended + row * heads_width + head * shared * a->head_dim,
                              .query_stride = width,
                              .out_stride = heads_width,
                              .tokens = stretch[1],
                              .shared = shared,
                              .position = step->positions[row],
                              .window = window,
                              .keys = keys + head * a->head_dim,
                              .blocks = step->blocks + step->tables[row],
                          });
    }
    meet(team);
}

/* Attention of the tokens that attend by themselves. */
static void attend_singly(struct team *team, const struct model *m, const struct step *step, const struct work *work,
                          const number *keys, int64_t window) {
    const struct attention *a = &m->attention;
    int64_t width = qkv_width(a), heads_width = a->heads * a->head_dim;
    /* Few tokens are split by heads, to give every thread something to do. */
    int64_t parts = (2 * team->size + step->num_single - 1) / step->num_single;
    if (parts > a->kv_heads) parts = a->kv_heads;
    EACH(piece, team, step->num_single * parts) {
        int64_t row = step->single[piece / parts], count = step->positions[row] + 1;
        int64_t start = window && count > window ? count - window : 0;
        attend(a, work->attended + row * heads_width, work->qkv + row * width, keys, step->blocks + step->tables[row],
               start, count, piece % parts, parts);
    }
    meet(team);
}

static void run_layer(struct team *team, const struct model *m, const struct step *step, const struct work *work,
                      int64_t number_of_layer) {
    const struct layer *layer = &m->layers[number_of_layer];
    const struct attention *a = &m->attention;
    int64_t rows = step->rows, width = qkv_width(a);
    number *keys = m->pool + number_of_layer * 2 * a->block_size * a->kv_heads * a->head_dim;

    EACH(row, team, rows)
        normalise(work->normed + row * m->hidden, work->x + row * m->hidden, layer->attention_norm, m->hidden, m->eps);
    meet(team);
    project(team, &layer->qkv, work->qkv, work->normed, rows);
    EACH(row, team, rows)
        place(m, layer, work->qkv + row * width, keys, step->positions[row], step->blocks + step->tables[row]);
    meet(team);
    if (step->num_stretches) attend_together(team, m, step, work, keys, layer->window);
    if (step->num_single) attend_singly(team, m, step, work, keys, layer->window);
    project(team, &layer->output, work->delta, work->attended, rows);
    EACH(row, team, rows) {
        number *x = work->x + row * m->hidden;
        add(m, x, work->delta + row * m->hidden, layer->after_attention);
        normalise(work->normed + row * m->hidden, x, layer->mlp_norm, m->hidden, m->eps);
    }
    meet(team);
    project_gated(team, m, &layer->gate_up, work->gated, work->normed, rows);
    project(team, &layer->down, work->delta, work->gated, rows);
    EACH(row, team, rows)
        add(m, work->x + row * m->hidden, work->delta + row * m->hidden, layer->after_mlp);
    meet(team);
}

/* Logits of the drawing rows, or the first of the highest of each. */
static void draw(struct team *team, const struct model *m, const struct step *step, const struct work *work,
                 int thread) {
    int64_t rows = step->num_drawing;
    EACH(i, team, rows)
        normalise(work->normed + i * m->hidden, work->x + step->drawing[i] * m->hidden, m->norm, m->hidden, m->eps);
    meet(team);
    float *best = step->best + thread * rows, tile[rows * TILE] __attribute__((aligned(64)));
    int64_t *best_tokens = step->best_tokens + thread * rows;
    int64_t tiles = (m->vocab + TILE - 1) / TILE;
    EACH(t, team, tiles) {
            multiply(tile, &m->head, t, t + 1 < tiles ? t + 1 : t, work->normed, rows);
            int64_t count = m->vocab - t * TILE < TILE ? m->vocab - t * TILE : TILE;
            for (int64_t row = 0; row < rows; row++) {
                float *values = tile + row * TILE;
                floats top = {0};
                top += LOWEST;
                for (int64_t i = 0; i < TILE; i += LANES) {
                    floats part = rounded(load_floats(values + i));
                    if (m->logit_softcap != 0.0f)
                        part = hyperbolic_tangent(part * (1.0f / m->logit_softcap)) * m->logit_softcap;
                    memcpy(values + i, &part, sizeof part);
                    top = larger(part, top);
                }
                if (step->logits)
                    memcpy(step->logits + row * m->vocab + t * TILE, values, (size_t)count * sizeof(float));
                else if (largest(top) > best[row])
                    for (int64_t i = 0; i < count; i++)
                        if (values[i] > best[row]) best[row] = values[i], best_tokens[row] = t * TILE + i;
            }
        }
    meet(team);
}

/* Whether tiles hold a weight (outputs, inputs). */
int is_tiled(const number *tiles, const number *weight, int64_t outputs, int64_t inputs) {
    int64_t differing = 0;
#pragma omp parallel for reduction(+ : differing)
    for (int64_t tile = 0; tile < (outputs + TILE - 1) / TILE; tile++)
        for (int64_t i = 0; i < inputs; i += PACK)
            for (int64_t output = tile * TILE; output < outputs && output < (tile + 1) * TILE; output++)
                differing += memcmp(weight + output * inputs + i,
                                    tiles + (tile * inputs + i) * TILE + output % TILE * PACK,
                                    PACK * sizeof(number)) != 0;
    return !differing;
}

static void run(struct team *team, const struct model *m, const struct step *step, int thread) {
    const struct attention *a = &m->attention;
    int64_t rows = step->rows;
    struct work work = {.x = step->scratch};
    work.normed = work.x + rows * m->hidden;
    work.delta = work.normed + rows * m->hidden;
    work.qkv = work.delta + rows * m->hidden;
    work.attended = work.qkv + rows * qkv_width(a);
    work.gated = work.attended + rows * a->heads * a->head_dim;
    EACH(row, team, rows) embed(m, work.x + row * m->hidden, step->token_ids[row]);
    meet(team);
    for (int64_t layer = 0; layer < m->num_layers; layer++) run_layer(team, m, step, &work, layer);
    if (step->num_drawing) draw(team, m, step, &work, thread);
}

void short_step(const struct model *m, const struct step *step, int threads) {
    struct meeting meeting = {0};
    if (!step->logits)
        for (int64_t i = 0; i < threads * step->num_drawing; i++) step->best[i] = -__builtin_inff();
#pragma omp parallel num_threads(threads)
    {
        struct team team = {.meeting = &meeting, .size = threads};
        run(&team, m, step, omp_get_thread_num());
    }
    if (step->logits) return;
    for (int64_t row = 0; row < step->num_drawing; row++) {
        int64_t winner = row;
        for (int thread = 1; thread < threads; thread++) {
            int64_t other = thread * step->num_drawing + row;
            int wins = step->best[other] > step->best[winner] ||
                       (step->best[other] == step->best[winner] && step->best_tokens[other] < step->best_tokens[winner]);
            winner = wins ? other : winner;
        }
        step->likeliest[row] = step->best_tokens[winner];
    }
}
