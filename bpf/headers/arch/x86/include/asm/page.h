/* BCC multiplies a ring's page count by this; x86-64 has one base page size. */
#ifndef AEROSTAT_PAGE_H
#define AEROSTAT_PAGE_H
#define PAGE_SIZE 4096
#endif
