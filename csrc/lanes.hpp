// Sixteen lanes of arithmetic, in three forms with bit-equal results: AVX-512, AVX2 and plain C++. Ops are written on these
// types alone, inside `namespace ossia::OSSIA_ISA`, in files that are compiled once for each ISA (see CMakeLists.txt).
//
//   F32   sixteen floats        I32   sixteen 32-bit integers
//   U8    64 unsigned bytes     S8    64 signed bytes; four neighbours belong to one 32-bit lane
//
// fma is fused in every form. Sums across lanes have one fixed order. Compiled without -ffast-math and with
// -ffp-contract=off: what is written is what is computed.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifndef OSSIA_ISA
#error "compile this file once for each ISA, with OSSIA_ISA=avx512, avx2 or plain"
#endif

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define OSSIA_LANES_AVX512 1
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__)
#define OSSIA_LANES_AVX2 1
#include <immintrin.h>
#endif

namespace ossia::OSSIA_ISA {

constexpr std::size_t kLanes = 16;

#if OSSIA_LANES_AVX512

struct F32 { __m512 v; };
struct I32 { __m512i v; };
struct U8 { __m512i v; };
struct S8 { __m512i v; };

inline F32 splat(float x) { return {_mm512_set1_ps(x)}; }
inline I32 splat(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
inline F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline I32 load(const std::int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline U8 load(const std::uint8_t* p) { return {_mm512_loadu_si512(p)}; }
// The same four bytes in every lane.
inline S8 splat4(const std::int8_t* p) {
  std::int32_t x;
  std::memcpy(&x, p, 4);
  return {_mm512_set1_epi32(x)};
}
inline void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
inline void store(std::int32_t* p, I32 a) { _mm512_storeu_si512(p, a.v); }
inline void store(std::uint8_t* p, U8 a) { _mm512_storeu_si512(p, a.v); }
inline F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// As the instruction has it: b where either is NaN.
inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32 sqrt(F32 a) { return {_mm512_sqrt_ps(a.v)}; }
inline I32 operator+(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32 operator-(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I32 operator*(I32 a, I32 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline I32 operator&(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I32 operator|(I32 a, I32 b) { return {_mm512_or_si512(a.v, b.v)}; }
inline I32 min(I32 a, I32 b) { return {_mm512_min_epi32(a.v, b.v)}; }
inline I32 max(I32 a, I32 b) { return {_mm512_max_epi32(a.v, b.v)}; }
template <int N>
inline I32 shift_left(I32 a) { return {_mm512_slli_epi32(a.v, N)}; }
template <int N>
inline I32 shift_right(I32 a) { return {_mm512_srli_epi32(a.v, N)}; }
// Logical, lane by lane; 32 and above give 0.
inline I32 shift_right(I32 a, I32 by) { return {_mm512_srlv_epi32(a.v, by.v)}; }
inline I32 bits(F32 a) { return {_mm512_castps_si512(a.v)}; }
inline F32 from_bits(I32 a) { return {_mm512_castsi512_ps(a.v)}; }
inline F32 to_float(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
// To the nearest, ties to even. Outside the range and for NaN: the smallest integer.
inline I32 round_to_int(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }
// a where x < y, else b.
inline F32 where_less(F32 x, F32 y, F32 a, F32 b) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_LT_OQ), b.v, a.v)};
}
inline I32 widen(const std::uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline I32 widen(const std::int8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline I32 widen(const std::uint16_t* p) {
  return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// The low byte, or the low 16 bits, of each lane.
inline void narrow(std::int8_t* p, I32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
inline void narrow(std::uint16_t* p, I32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}
// The four bytes of each lane as one number, the first byte lowest.
inline I32 words(U8 a) { return {a.v}; }
inline U8 low_nibbles(U8 a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(0x0f))}; }
inline U8 high_nibbles(U8 a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(0x0f))}; }
// Bytes of two nibbles: the upper from a, the lower from b; the low ones of both, or the high ones of both.
inline U8 join_low_nibbles(U8 a, U8 b) {
  const __m512i mask = _mm512_set1_epi8(0x0f);
  return {_mm512_or_si512(_mm512_slli_epi16(_mm512_and_si512(a.v, mask), 4), _mm512_and_si512(b.v, mask))};
}
inline U8 join_high_nibbles(U8 a, U8 b) {
  const __m512i mask = _mm512_set1_epi8(0x0f);
  return {_mm512_or_si512(_mm512_andnot_si512(mask, a.v), _mm512_and_si512(_mm512_srli_epi16(b.v, 4), mask))};
}
// A table of 16 bytes, looked up by bytes below 16.
struct Table { __m512i v; };
inline Table table(const std::uint8_t* p) {
  return {_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline U8 look_up(Table t, U8 index) { return {_mm512_shuffle_epi8(t.v, index.v)}; }
// A table of 16 floats, looked up by the low four bits of each lane.
struct FloatTable { __m512 v; };
inline FloatTable table(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F32 look_up(FloatTable t, I32 index) { return {_mm512_permutexvar_ps(index.v, t.v)}; }
// sum + a0*b0 + a1*b1 + a2*b2 + a3*b3 in each lane, exactly.
inline I32 dot4(I32 sum, U8 a, S8 b) { return {_mm512_dpbusd_epi32(sum.v, a.v, b.v)}; }
// The same where no byte of a exceeds 127, so that two products fit into 16 bits.
inline I32 dot4_small(I32 sum, U8 a, S8 b) { return dot4(sum, a, b); }

#elif OSSIA_LANES_AVX2

struct F32 { __m256 lo, hi; };
struct I32 { __m256i lo, hi; };
struct U8 { __m256i lo, hi; };
struct S8 { __m256i lo, hi; };

inline F32 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline I32 splat(std::int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline F32 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline __m256i load_half(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline I32 load(const std::int32_t* p) { return {load_half(p), load_half(p + 8)}; }
inline U8 load(const std::uint8_t* p) { return {load_half(p), load_half(p + 32)}; }
inline S8 splat4(const std::int8_t* p) {
  std::int32_t x;
  std::memcpy(&x, p, 4);
  return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
inline void store(float* p, F32 a) { _mm256_storeu_ps(p, a.lo), _mm256_storeu_ps(p + 8, a.hi); }
inline void store_half(void* p, __m256i a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }
inline void store(std::int32_t* p, I32 a) { store_half(p, a.lo), store_half(p + 8, a.hi); }
inline void store(std::uint8_t* p, U8 a) { store_half(p, a.lo), store_half(p + 32, a.hi); }
inline F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
inline F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F32 sqrt(F32 a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
inline I32 operator+(I32 a, I32 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline I32 operator-(I32 a, I32 b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
inline I32 operator*(I32 a, I32 b) { return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)}; }
inline I32 operator&(I32 a, I32 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
inline I32 operator|(I32 a, I32 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
inline I32 min(I32 a, I32 b) { return {_mm256_min_epi32(a.lo, b.lo), _mm256_min_epi32(a.hi, b.hi)}; }
inline I32 max(I32 a, I32 b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
template <int N>
inline I32 shift_left(I32 a) { return {_mm256_slli_epi32(a.lo, N), _mm256_slli_epi32(a.hi, N)}; }
template <int N>
inline I32 shift_right(I32 a) { return {_mm256_srli_epi32(a.lo, N), _mm256_srli_epi32(a.hi, N)}; }
inline I32 shift_right(I32 a, I32 by) { return {_mm256_srlv_epi32(a.lo, by.lo), _mm256_srlv_epi32(a.hi, by.hi)}; }
inline I32 bits(F32 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
inline F32 from_bits(I32 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
inline F32 to_float(I32 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline I32 round_to_int(F32 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
inline F32 where_less(F32 x, F32 y, F32 a, F32 b) {
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_cmp_ps(x.lo, y.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(b.hi, a.hi, _mm256_cmp_ps(x.hi, y.hi, _CMP_LT_OQ))};
}
inline __m128i load_quarter(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline I32 widen(const std::uint8_t* p) {
  const __m128i x = load_quarter(p);
  return {_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))};
}
inline I32 widen(const std::int8_t* p) {
  const __m128i x = load_quarter(p);
  return {_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))};
}
inline I32 widen(const std::uint16_t* p) {
  return {_mm256_cvtepu16_epi32(load_quarter(p)), _mm256_cvtepu16_epi32(load_quarter(p + 8))};
}
inline void narrow(std::int8_t* p, I32 a) {
  std::int32_t lanes[16];
  store(lanes, a);
  for (int i = 0; i < 16; ++i) p[i] = static_cast<std::int8_t>(lanes[i]);
}
inline void narrow(std::uint16_t* p, I32 a) {
  std::int32_t lanes[16];
  store(lanes, a);
  for (int i = 0; i < 16; ++i) p[i] = static_cast<std::uint16_t>(lanes[i]);
}
inline I32 words(U8 a) { return {a.lo, a.hi}; }
inline U8 low_nibbles(U8 a) {
  const __m256i mask = _mm256_set1_epi8(0x0f);
  return {_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask)};
}
inline U8 high_nibbles(U8 a) { return low_nibbles({_mm256_srli_epi16(a.lo, 4), _mm256_srli_epi16(a.hi, 4)}); }
inline __m256i join_low_half(__m256i a, __m256i b) {
  const __m256i mask = _mm256_set1_epi8(0x0f);
  return _mm256_or_si256(_mm256_slli_epi16(_mm256_and_si256(a, mask), 4), _mm256_and_si256(b, mask));
}
inline __m256i join_high_half(__m256i a, __m256i b) {
  const __m256i mask = _mm256_set1_epi8(0x0f);
  return _mm256_or_si256(_mm256_andnot_si256(mask, a), _mm256_and_si256(_mm256_srli_epi16(b, 4), mask));
}
inline U8 join_low_nibbles(U8 a, U8 b) { return {join_low_half(a.lo, b.lo), join_low_half(a.hi, b.hi)}; }
inline U8 join_high_nibbles(U8 a, U8 b) { return {join_high_half(a.lo, b.lo), join_high_half(a.hi, b.hi)}; }
struct Table { __m256i v; };
inline Table table(const std::uint8_t* p) { return {_mm256_broadcastsi128_si256(load_quarter(p))}; }
inline U8 look_up(Table t, U8 index) {
  return {_mm256_shuffle_epi8(t.v, index.lo), _mm256_shuffle_epi8(t.v, index.hi)};
}
struct FloatTable { __m256 low, high; };
inline FloatTable table(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline __m256 look_up_half(const FloatTable& t, __m256i index) {
  // The fourth bit, moved to where a sign is, chooses.
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t.low, index), _mm256_permutevar8x32_ps(t.high, index),
                          _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}
inline F32 look_up(const FloatTable& t, I32 index) { return {look_up_half(t, index.lo), look_up_half(t, index.hi)}; }
// Bytes 0 and 2 of each lane meet in one 16-bit pair, bytes 1 and 3 in another: nothing can saturate.
inline __m256i dot4_half(__m256i sum, __m256i a, __m256i b) {
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(0x00ff)),
                                         _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}
inline I32 dot4(I32 sum, U8 a, S8 b) { return {dot4_half(sum.lo, a.lo, b.lo), dot4_half(sum.hi, a.hi, b.hi)}; }
inline __m256i dot4_small_half(__m256i sum, __m256i a, __m256i b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
}
inline I32 dot4_small(I32 sum, U8 a, S8 b) {
  return {dot4_small_half(sum.lo, a.lo, b.lo), dot4_small_half(sum.hi, a.hi, b.hi)};
}

#else

struct F32 { float v[16]; };
struct I32 { std::int32_t v[16]; };
struct U8 { std::uint8_t v[64]; };
struct S8 { std::int8_t v[64]; };

#define OSSIA_LANEWISE(type, expression)               \
  type out;                                            \
  for (std::size_t i = 0; i < kLanes; ++i) out.v[i] = (expression); \
  return out

inline std::uint32_t as_unsigned(std::int32_t x) { return static_cast<std::uint32_t>(x); }
inline std::int32_t as_signed(std::uint32_t x) { return static_cast<std::int32_t>(x); }

inline F32 splat(float x) { OSSIA_LANEWISE(F32, x); }
inline I32 splat(std::int32_t x) { OSSIA_LANEWISE(I32, x); }
inline F32 load(const float* p) { OSSIA_LANEWISE(F32, p[i]); }
inline I32 load(const std::int32_t* p) { OSSIA_LANEWISE(I32, p[i]); }
inline U8 load(const std::uint8_t* p) {
  U8 out;
  std::memcpy(out.v, p, 64);
  return out;
}
inline S8 splat4(const std::int8_t* p) {
  S8 out;
  for (std::size_t i = 0; i < kLanes; ++i) std::memcpy(out.v + 4 * i, p, 4);
  return out;
}
inline void store(float* p, F32 a) { std::memcpy(p, a.v, sizeof a.v); }
inline void store(std::int32_t* p, I32 a) { std::memcpy(p, a.v, sizeof a.v); }
inline void store(std::uint8_t* p, U8 a) { std::memcpy(p, a.v, sizeof a.v); }
inline F32 operator+(F32 a, F32 b) { OSSIA_LANEWISE(F32, a.v[i] + b.v[i]); }
inline F32 operator-(F32 a, F32 b) { OSSIA_LANEWISE(F32, a.v[i] - b.v[i]); }
inline F32 operator*(F32 a, F32 b) { OSSIA_LANEWISE(F32, a.v[i] * b.v[i]); }
inline F32 operator/(F32 a, F32 b) { OSSIA_LANEWISE(F32, a.v[i] / b.v[i]); }
inline F32 fma(F32 a, F32 b, F32 c) { OSSIA_LANEWISE(F32, std::fma(a.v[i], b.v[i], c.v[i])); }
inline F32 min(F32 a, F32 b) { OSSIA_LANEWISE(F32, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline F32 max(F32 a, F32 b) { OSSIA_LANEWISE(F32, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline F32 sqrt(F32 a) { OSSIA_LANEWISE(F32, std::sqrt(a.v[i])); }
inline I32 operator+(I32 a, I32 b) { OSSIA_LANEWISE(I32, as_signed(as_unsigned(a.v[i]) + as_unsigned(b.v[i]))); }
inline I32 operator-(I32 a, I32 b) { OSSIA_LANEWISE(I32, as_signed(as_unsigned(a.v[i]) - as_unsigned(b.v[i]))); }
inline I32 operator*(I32 a, I32 b) { OSSIA_LANEWISE(I32, as_signed(as_unsigned(a.v[i]) * as_unsigned(b.v[i]))); }
inline I32 operator&(I32 a, I32 b) { OSSIA_LANEWISE(I32, a.v[i] & b.v[i]); }
inline I32 operator|(I32 a, I32 b) { OSSIA_LANEWISE(I32, a.v[i] | b.v[i]); }
inline I32 min(I32 a, I32 b) { OSSIA_LANEWISE(I32, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline I32 max(I32 a, I32 b) { OSSIA_LANEWISE(I32, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
template <int N>
inline I32 shift_left(I32 a) { OSSIA_LANEWISE(I32, as_signed(as_unsigned(a.v[i]) << N)); }
template <int N>
inline I32 shift_right(I32 a) { OSSIA_LANEWISE(I32, as_signed(as_unsigned(a.v[i]) >> N)); }
inline I32 shift_right(I32 a, I32 by) {
  OSSIA_LANEWISE(I32, as_unsigned(by.v[i]) > 31 ? 0 : as_signed(as_unsigned(a.v[i]) >> by.v[i]));
}
inline I32 bits(F32 a) {
  I32 out;
  std::memcpy(out.v, a.v, sizeof a.v);
  return out;
}
inline F32 from_bits(I32 a) {
  F32 out;
  std::memcpy(out.v, a.v, sizeof a.v);
  return out;
}
inline F32 to_float(I32 a) { OSSIA_LANEWISE(F32, static_cast<float>(a.v[i])); }
inline I32 round_to_int(F32 a) {
  OSSIA_LANEWISE(I32, a.v[i] >= -2147483648.0f && a.v[i] < 2147483648.0f
                          ? static_cast<std::int32_t>(std::nearbyint(a.v[i]))
                          : INT32_MIN);
}
inline F32 where_less(F32 x, F32 y, F32 a, F32 b) { OSSIA_LANEWISE(F32, x.v[i] < y.v[i] ? a.v[i] : b.v[i]); }
inline I32 widen(const std::uint8_t* p) { OSSIA_LANEWISE(I32, p[i]); }
inline I32 widen(const std::int8_t* p) { OSSIA_LANEWISE(I32, p[i]); }
inline I32 widen(const std::uint16_t* p) { OSSIA_LANEWISE(I32, p[i]); }
inline void narrow(std::int8_t* p, I32 a) {
  for (std::size_t i = 0; i < kLanes; ++i) p[i] = static_cast<std::int8_t>(a.v[i]);
}
inline void narrow(std::uint16_t* p, I32 a) {
  for (std::size_t i = 0; i < kLanes; ++i) p[i] = static_cast<std::uint16_t>(a.v[i]);
}
inline I32 words(U8 a) {
  OSSIA_LANEWISE(I32, as_signed(std::uint32_t{a.v[4 * i]} | std::uint32_t{a.v[4 * i + 1]} << 8 |
                                std::uint32_t{a.v[4 * i + 2]} << 16 | std::uint32_t{a.v[4 * i + 3]} << 24));
}
inline U8 low_nibbles(U8 a) {
  for (std::uint8_t& byte : a.v) byte &= 0x0f;
  return a;
}
inline U8 high_nibbles(U8 a) {
  for (std::uint8_t& byte : a.v) byte >>= 4;
  return a;
}
inline U8 join_low_nibbles(U8 a, U8 b) {
  for (std::size_t i = 0; i < 4 * kLanes; ++i) a.v[i] = static_cast<std::uint8_t>(a.v[i] << 4 | (b.v[i] & 0x0f));
  return a;
}
inline U8 join_high_nibbles(U8 a, U8 b) {
  for (std::size_t i = 0; i < 4 * kLanes; ++i) a.v[i] = static_cast<std::uint8_t>((a.v[i] & 0xf0) | b.v[i] >> 4);
  return a;
}
struct Table { std::uint8_t v[16]; };
inline Table table(const std::uint8_t* p) {
  Table out;
  std::memcpy(out.v, p, 16);
  return out;
}
inline U8 look_up(const Table& t, U8 index) {
  for (std::uint8_t& byte : index.v) byte = t.v[byte];
  return index;
}
struct FloatTable { float v[16]; };
inline FloatTable table(const float* p) {
  FloatTable out;
  std::memcpy(out.v, p, sizeof out.v);
  return out;
}
inline F32 look_up(const FloatTable& t, I32 index) { OSSIA_LANEWISE(F32, t.v[index.v[i] & 15]); }
inline I32 dot4(I32 sum, U8 a, S8 b) {
  for (std::size_t i = 0; i < 4 * kLanes; ++i) sum.v[i / 4] += a.v[i] * b.v[i];
  return sum;
}
inline I32 dot4_small(I32 sum, U8 a, S8 b) { return dot4(sum, a, b); }

#undef OSSIA_LANEWISE

#endif

// -------------------------------------------------------------------- what follows from the above

// GCC takes a function that only prefetches for one that does nothing, and drops its calls unless they are inlined early.
#if defined(__GNUC__) || defined(__clang__)
#define OSSIA_INLINE __attribute__((always_inline)) inline
#else
#define OSSIA_INLINE inline
#endif

// Asks for the cache line at p, which may be anywhere, ahead of its use.
OSSIA_INLINE void prefetch(const void* p) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(p);
#else
  (void)p;
#endif
}

// Sixteen bfloat16 as floats, exactly.
inline F32 load_bf16(const std::uint16_t* p) { return from_bits(shift_left<16>(widen(p))); }

// Sixteen floats as bfloat16, to the nearest, ties to even; NaN stays NaN.
inline void store_bf16(std::uint16_t* p, F32 a) {
  const I32 x = bits(a);
  const I32 odd = shift_right<16>(x) & splat(1);
  const F32 rounded = from_bits(x + splat(0x7fff) + odd);
  // Rounding the bits of a NaN could carry it into zero; its own upper half with a set mantissa bit stands for it.
  const I32 absolute = x & splat(0x7fffffff);
  const F32 is_number = to_float(min(max(splat(0x7f800001) - absolute, splat(0)), splat(1)));
  const F32 kept = where_less(splat(0.5f), is_number, rounded, from_bits(x | splat(0x00400000)));
  narrow(p, shift_right<16>(bits(kept)));
}

// |a|; the bits of floats that are not negative order as integers do, NaN above infinity.
inline I32 magnitude(F32 a) { return bits(a) & splat(0x7fffffff); }

inline float sum(F32 a) {
  float v[kLanes];
  store(v, a);
  for (std::size_t half = kLanes / 2; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i) v[i] += v[i + half];
  return v[0];
}

inline std::int32_t sum(I32 a) {
  std::int32_t v[kLanes], total = 0;
  store(v, a);
  for (std::int32_t x : v) total += x;
  return total;
}

inline std::int32_t largest(I32 a) {
  std::int32_t v[kLanes];
  store(v, a);
  std::int32_t most = v[0];
  for (std::int32_t x : v) most = x > most ? x : most;
  return most;
}

inline float largest(F32 a) {
  float v[kLanes];
  store(v, a);
  float most = v[0];
  for (float x : v) most = x > most ? x : most;
  return most;
}

// e^a to about one unit in the last place; 0 below -86.6, infinity above 88.7, NaN for NaN.
inline F32 exp(F32 a) {
  const F32 low = splat(-86.6f), high = splat(88.72283f);
  const F32 x = max(low, min(high, a));
  const I32 n = round_to_int(x * splat(1.44269504f));
  const F32 k = to_float(n);
  F32 r = fma(k, splat(-0.693145752f), x);  // ln 2 in two parts: the first has few bits, so its products are exact.
  r = fma(k, splat(-1.42860677e-6f), r);
  F32 p = splat(1.0f / 5040.0f);
  p = fma(p, r, splat(1.0f / 720.0f));
  p = fma(p, r, splat(1.0f / 120.0f));
  p = fma(p, r, splat(1.0f / 24.0f));
  p = fma(p, r, splat(1.0f / 6.0f));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  // Twice half the power: 2^128 itself, on the way to a number below infinity, is not a float.
  const F32 scaled = p * from_bits(shift_left<23>(n + splat(126))) * splat(2.0f);
  return where_less(a, low, splat(0.0f), where_less(high, a, splat(INFINITY), scaled));
}

}  // namespace ossia::OSSIA_ISA
