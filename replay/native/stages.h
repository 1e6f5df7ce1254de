/* Stage c for one request, for whoever times it together with others. */
#ifndef AEROSTAT_STAGES_H
#define AEROSTAT_STAGES_H

#include "core.h"

void aero_translate_request(const uint8_t *at, const uint8_t *end, uint8_t form,
                            const struct aero_map *map, struct aero_translation *out);

#endif
